"use strict";
(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // Search: names that contain all words typed, or the number of a class.
  const search = find("#search");
  if (search) {
    const items = all("[data-name]");
    const count = find("#count"), nothing = find("#nothing");
    const whole = count.textContent;
    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const item of items) {
        const name = item.dataset.name.toLowerCase();
        item.hidden = !words.every((word) => name.includes(word) || item.dataset.label === word);
        shown += !item.hidden;
      }
      count.textContent = words.length
        ? `${shown} of ${items.length} classes` : whole;
      nothing.hidden = shown > 0;
    };
    search.addEventListener("input", update);
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { search.value = ""; update(); }
    });
    update();
  }

  // A class enlarged, with what it is compared to.
  let enlarge = null;
  const viewer = find("#viewer");
  if (viewer && viewer.showModal) {
    const title = find("#viewer-title"), body = find("#viewer-body"), hint = find("#viewer-hint");
    let current = null, before = null;
    const figure = (image, name, text) => {
      const caption = make("figcaption", {}, make("b", { textContent: name }));
      if (text) caption.append(` ${text}`);
      return make("figure", {}, make("img", { src: image.src || image.dataset.src,
        alt: image.alt || image.dataset.alt }), caption);
    };
    const show = (card) => {
      current = card;
      title.textContent = card.dataset.name;
      hint.textContent = `number ${card.dataset.label}; ← and → for others`;
      body.replaceChildren(...all(".row", card).map((row, number) => {
        const [first, ...others] = all("[data-title]", row);
        // The real image below the first one belongs to it.
        const rest = number ? others : [...all(".foot [data-title]", card), ...others];
        const beside = make("div", { className: "beside" }, ...rest.map((entry) =>
          figure(find("img", entry) || entry, entry.dataset.title, entry.dataset.text)));
        return make("div", { className: "set" },
          figure(find("img", first) || first, first.dataset.title, first.dataset.text), beside);
      }));
      viewer.scrollTop = 0;
    };
    const move = (by) => {
      const cards = all(".card").filter((card) => !card.hidden);
      const next = cards[(cards.indexOf(current) + by + cards.length) % cards.length];
      if (next) show(next);
    };
    enlarge = (card, from) => { before = from; show(card); viewer.showModal(); };
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
      if (event.key === "ArrowRight") move(1);
      if (event.key === "ArrowLeft") move(-1);
    });
    viewer.addEventListener("close", () => (before || find(".open", current)).focus());
  }

  // Timelapse. A frame is one picture of all images, of which each is drawn above its name.
  const slider = find("#step");
  if (slider) {
    const frames = all(".frames img"), said = find("#step-said"), play = find("#play");
    const cells = find(".cells"), canvases = all(".cells canvas");
    let timer = null;
    const draw = (frame) => {
      const side = Number(cells.dataset.side);
      for (const canvas of canvases) {
        const context = canvas.getContext("2d");
        context.clearRect(0, 0, side, side);
        context.drawImage(frame, canvas.dataset.x, canvas.dataset.y, side, side, 0, 0, side, side);
      }
      cells.setAttribute("aria-label", frame.alt);
    };
    const show = () => {
      const number = Number(slider.value), frame = frames[number];
      frames.forEach((other, i) => { other.hidden = i !== number; });
      if (cells) {
        if (frame.complete) draw(frame);
        else frame.addEventListener("load", () => { if (!frame.hidden) draw(frame); }, { once: true });
      }
      said.textContent = frame.dataset.said;
      slider.setAttribute("aria-valuetext", frame.dataset.said);
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
      }, 450);
    });
    if (cells) { cells.hidden = false; find(".frames").hidden = true; }
    show();
  }

  // Map: a class's real images light up with its distilled one, for as long as it is chosen.
  const plane = find(".plane");
  if (plane) {
    const thumbs = all("button", plane), told = find("#map-said"), open = find("#map-open");
    const invitation = told.textContent;
    let chosen = null;
    const light = (thumb) => {
      const label = thumb ? thumb.dataset.label : null;
      plane.classList.toggle("hot", thumb !== null);
      for (const part of [...all("path", plane), ...thumbs]) {
        part.classList.toggle("hot", part.dataset.label === label);
      }
    };
    const choose = (thumb) => {
      chosen = thumb;
      for (const other of thumbs) other.setAttribute("aria-pressed", String(other === thumb));
      light(thumb);
      const name = thumb && find("span", thumb).textContent, count = thumb && thumb.dataset.count;
      told.textContent = thumb ? `: ${count} real image${count === "1" ? "" : "s"} lit up.` : invitation;
      // A name that is written from right to left does not turn the rest of the line.
      if (thumb) told.prepend(make("bdi", { textContent: name }));
      const card = thumb && document.getElementById(`class-${thumb.dataset.label}`);
      open.hidden = !(card && enlarge);
      open.onclick = () => enlarge(card, open);
    };
    for (const thumb of thumbs) {
      for (const name of ["mouseenter", "focus"]) thumb.addEventListener(name, () => light(thumb));
      for (const name of ["mouseleave", "blur"]) thumb.addEventListener(name, () => light(chosen));
      thumb.addEventListener("click", () => choose(thumb === chosen ? null : thumb));
    }
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
})();
