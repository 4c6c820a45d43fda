// Within a function of its own, as is map.js.
const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};
// Names break after underscores, and nowhere within a word.
const write = (element, name) => element.replaceChildren(
  ...name.split(/(?<=_)/).flatMap((part, i) => i ? [make("wbr"), part] : [part]));
const matches = (item, words) => words.every((word) =>
  item.dataset.name.toLowerCase().includes(word) || item.dataset.label === word);
const split = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

// Search: names that contain all words typed, or the number of a class.
const search = find("#search");
if (search) {
  const items = all("[data-name]", document.getElementById(search.getAttribute("aria-controls")));
  const count = find("#count"), nothing = find("#nothing");
  const whole = count.textContent;
  const update = () => {
    const words = split(search.value);
    let shown = 0;
    for (const item of items) {
      item.hidden = !matches(item, words);
      shown += !item.hidden;
    }
    count.textContent = words.length ? `${shown} of ${items.length} classes` : whole;
    nothing.hidden = shown > 0;
  };
  search.addEventListener("input", update);
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { search.value = ""; update(); }
  });
  update();
}

// A timelapse: a slider over the frames, and a button that plays them.
const frames = all(".frames img");
const makeFilm = (name, draw) => {
  const [slider, play, said] = ["step", "play", "said"].map((part) => find(`#${name}-${part}`));
  let timer = null;
  const show = () => {
    const frame = frames[Number(slider.value)];
    said.textContent = frame.dataset.said;
    slider.setAttribute("aria-valuetext", frame.dataset.said);
    if (frame.complete) { draw(frame); return; }
    frame.addEventListener("load", () => {
      if (frame === frames[Number(slider.value)]) draw(frame);
    }, { once: true });
    frame.loading = "eager";
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) { stop(); return; }
    if (Number(slider.value) === frames.length - 1) slider.value = 0;
    show();
    play.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === frames.length - 1) stop();
    }, 220);
  });
  return { show, stop };
};
const drawCells = (canvases, frame) => {
  for (const canvas of canvases) {
    const side = canvas.width, context = canvas.getContext("2d");
    context.clearRect(0, 0, side, side);
    context.drawImage(frame, canvas.dataset.x, canvas.dataset.y, side, side, 0, 0, side, side);
  }
};
const cells = find(".cells"), canvases = all(".cells canvas");
if (frames.length) {
  const film = makeFilm("film", (frame) => {
    for (const other of frames) other.hidden = other !== frame;
    drawCells(canvases, frame);
    if (cells) cells.setAttribute("aria-label", frame.alt);
  });
  if (cells) { cells.hidden = false; find(".frames").hidden = true; }
  film.show();
}

// A class enlarged, at an address of its own, with what it is compared to.
const viewer = find("#viewer"), body = viewer && find("#viewer-body");
let enlarge = null, chooseOnMap = () => {};
if (viewer && viewer.showModal) {
  const title = find("#viewer-title"), hint = find("#viewer-hint");
  const filmed = find("#viewer-film"), shown = filmed && find(".canvases", filmed);
  let current = null, before = null;
  const film = filmed && makeFilm("viewer",
    (frame) => drawCells(all("canvas", shown), frame));
  const figure = (entry) => {
    const image = find("img", entry) || entry, { title: name, text, method } = entry.dataset;
    const caption = make("figcaption", {}, make("b",
      { textContent: name, className: method ? `keyed ${method}` : "" }));
    if (text) caption.append(`: ${text}`);
    return make("figure", {}, make("img", { src: image.src || image.dataset.src,
      alt: image.alt || image.dataset.alt }), caption);
  };
  const showFilm = (card) => {
    const own = canvases.filter((canvas) => canvas.dataset.label === card.dataset.label);
    filmed.hidden = !own.length;
    shown.replaceChildren(...own.map((canvas) => canvas.cloneNode()));
    film.stop();
    find("#viewer-step").value = frames.length - 1;
    film.show();
  };
  const show = (card) => {
    current = card;
    chooseOnMap(card.dataset.label);
    write(title, card.dataset.name);
    hint.textContent = `number ${card.dataset.label}; ← and → for others`;
    const sets = all(".row", card).map((row, number) => {
      const [first, ...others] = all("[data-title]", row);
      // The real image below the first one belongs to it.
      const rest = number ? others : [...all(".foot [data-title]", card), ...others];
      const beside = make("div", { className: "beside" }, ...rest.map(figure));
      return make("div", { className: "set" }, figure(first), beside);
    });
    const about = find(".about", card);
    if (about) find(".beside", sets[0]).append(Object.assign(about.cloneNode(true), { hidden: false }));
    body.replaceChildren(...sets);
    if (filmed) showFilm(card);
    viewer.scrollTop = 0;
  };
  const at = (card) => card ? `#${card.id}` : location.pathname + location.search;
  const move = (by) => {
    const cards = all(".card").filter((card) => !card.hidden);
    const next = cards[(cards.indexOf(current) + by + cards.length) % cards.length];
    if (!next) return;
    show(next);
    history.replaceState(null, "", at(next));
  };
  // The page's address names the class, so that it can be sent, and "back" closes it.
  const follow = () => {
    const card = location.hash.startsWith("#class-") && find(`.card${location.hash}`);
    if (card) {
      show(card);
      if (!viewer.open) viewer.showModal();
    } else if (viewer.open) viewer.close();
  };
  enlarge = (card, from) => {
    before = from;
    if (location.hash !== at(card)) history.pushState(null, "", at(card));
    follow();
  };
  for (const card of all(".card")) {
    find(".open", card).addEventListener("click", () => enlarge(card, null));
    for (const real of all(".real", card)) {
      real.addEventListener("click", () => enlarge(card, null));
    }
  }
  find("#next").addEventListener("click", () => move(1));
  find("#previous").addEventListener("click", () => move(-1));
  find("#close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.target.type === "range") return;
    if (event.key === "ArrowRight") move(1);
    if (event.key === "ArrowLeft") move(-1);
  });
  viewer.addEventListener("close", () => {
    if (film) film.stop();
    if (location.hash.startsWith("#class-")) history.replaceState(null, "", at(null));
    (before || find(".open", current)).focus({ preventScroll: Boolean(before) });
  });
  find("#pixels").addEventListener("change", (event) => {
    viewer.classList.toggle("pixels-shown", event.target.checked);
  });
  // First when the map is there, too.
  for (const name of ["DOMContentLoaded", "popstate", "hashchange"]) window.addEventListener(name, follow);
}

// A picture enlarged by itself, in a comparison.
const lens = find("#lens");
if (lens) {
  for (const cell of all("button.cell")) {
    cell.addEventListener("click", () => {
      const image = find("img", cell);
      find("img", lens).src = image.src;
      find("img", lens).alt = image.alt;
      write(find("#lens-title"), image.alt);
      lens.showModal();
      lens.addEventListener("close", () => cell.focus(), { once: true });
    });
  }
  find("button", lens).addEventListener("click", () => lens.close());
  lens.addEventListener("click", (event) => { if (event.target === lens) lens.close(); });
}

// Accuracies by class, in another order.
const rows = find("#class-rows");
if (rows) {
  const few = 12, more = find("#all-classes"), sorts = all("[data-sort]");
  let every = rows.children.length <= few;
  const arrange = (button) => {
    const { sort, sign } = button.dataset;
    const sorted = [...rows.children].sort((a, b) => sign * (a.dataset[sort] - b.dataset[sort]));
    sorted.forEach((row, i) => { row.hidden = !every && i >= few; });
    rows.append(...sorted);
    for (const other of sorts) other.setAttribute("aria-pressed", String(other === button));
    more.hidden = every;
  };
  for (const button of sorts) button.addEventListener("click", () => arrange(button));
  more.addEventListener("click", () => {
    every = true;
    arrange(sorts.find((button) => button.getAttribute("aria-pressed") === "true"));
  });
  arrange(sorts[0]);
}

// Figures, saved as the file that a template holds or as a picture of it.
const save = (href, name) => make("a", { href, download: name }).click();
for (const template of all("template.figure-file")) {
  const svg = new XMLSerializer().serializeToString(template.content.firstElementChild);
  const href = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  const { name, what } = template.dataset;
  const button = (text, action) => {
    const made = make("button", { className: "plain small", type: "button", textContent: text });
    made.setAttribute("aria-label", `Save as figure: ${what}, ${text}`);
    made.addEventListener("click", action);
    return made;
  };
  const asPicture = () => {
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      save(canvas.toDataURL("image/png"), `${name}.png`);
    };
    image.src = href;
  };
  template.replaceWith(make("p", { className: "save" }, "Save as figure: ",
    button("PNG", asPicture), " ", button("SVG", () => save(href, `${name}.svg`))));
}

// Copying.
if (navigator.clipboard) {
  for (const code of all(".code")) {
    const button = make("button", { className: "copy", type: "button", textContent: "Copy" });
    button.setAttribute("aria-label", `Copy: ${code.dataset.what}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(find("pre", code).textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    code.prepend(button);
  }
}
