const makeMap = (plane) => {
  // A class's real images light up with its distilled one, for as long as it is chosen.
  const thumbs = all("button", plane), told = find("#map-said"), open = find("#map-open");
  const tip = find("#map-tip"), pane = find(".pane");
  const invitation = told.textContent;
  let chosen = null;
  // By how much the map has to scroll for a part of it to be seen, or its middle if it is too large.
  const shift = (part) => {
    const own = part.getBoundingClientRect(), box = pane.getBoundingClientRect();
    const along = (low, high, from, to) => high - low > to - from ? (low + high - from - to) / 2
      : Math.min(0, low - from) + Math.max(0, high - to);
    return [along(own.left, own.right, box.left, box.right),
      along(own.top, own.bottom, box.top, box.bottom)];
  };
  // The real images of the chosen class, as far as its distilled one, with its name, stays in sight.
  const reveal = () => {
    if (!chosen) return;
    const real = all(`path[data-label="${chosen.dataset.label}"]`, plane);
    for (const part of [...real, chosen, ...all("span", chosen)]) {
      const [left, top] = shift(part);
      pane.scrollBy({ left, top, behavior: "instant" });
    }
  };
  const point = (thumb) => {
    if (!tip) return;
    tip.hidden = !thumb || shift(thumb).some((by) => Math.abs(by) > thumb.offsetWidth / 2);
    if (tip.hidden) return;
    find("img", tip).src = thumb.dataset.src;
    write(find("bdi", tip), thumb.dataset.name);
    // Beside the dot, within the map.
    const dot = thumb.getBoundingClientRect(), box = pane.getBoundingClientRect();
    const within = (low, at, high) => Math.max(low, Math.min(at, high));
    tip.style.left = `${within(4, dot.right - box.left + 6, box.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${within(4, dot.bottom - box.top + 6, box.height - tip.offsetHeight - 4)}px`;
  };
  const light = (labels) => {
    plane.classList.toggle("hot", labels.size > 0);
    for (const part of [...all("path", plane), ...thumbs]) {
      part.classList.toggle("hot", labels.has(part.dataset.label));
    }
  };
  const show = (thumb) => {
    light(new Set(thumb ? [thumb.dataset.label] : []));
    point(thumb);
  };
  const choose = (thumb) => {
    chosen = thumb;
    for (const other of thumbs) other.setAttribute("aria-pressed", String(other === thumb));
    show(thumb);
    reveal();
    const count = thumb && thumb.dataset.count;
    told.textContent = thumb ? `: ${count} real image${count === "1" ? "" : "s"} lit up.` : invitation;
    // A name that is written from right to left does not turn the rest of the line.
    if (thumb) told.prepend(make("bdi", { textContent: thumb.dataset.name }));
    const card = thumb && document.getElementById(`class-${thumb.dataset.label}`);
    open.hidden = !(card && enlarge);
    open.onclick = () => enlarge(card, open);
  };
  for (const thumb of thumbs) {
    for (const name of ["mouseenter", "focus"]) thumb.addEventListener(name, () => show(thumb));
    for (const name of ["mouseleave", "blur"]) thumb.addEventListener(name, () => show(chosen));
    thumb.addEventListener("click", () => choose(thumb === chosen ? null : thumb));
  }

  // Names typed light up their classes; a single one is chosen.
  const search = find("#map-search");
  if (search) {
    search.addEventListener("input", () => {
      const words = split(search.value);
      const found = words.length ? thumbs.filter((thumb) => matches(thumb, words)) : [];
      const exact = found.filter((thumb) => thumb.dataset.name.toLowerCase() === words.join(" "));
      const [one] = exact.length === 1 ? exact : found.length === 1 ? found : [null];
      choose(one || null);
      if (one) { one.scrollIntoView({ block: "nearest", inline: "nearest" }); return; }
      light(new Set(found.map((thumb) => thumb.dataset.label)));
      if (words.length) told.textContent = `${found.length} classes have such a name.`;
    });
  }

  // Enlarged, the map scrolls in its frame; thumbnails stay as large as they are.
  const levels = [1, 1.5, 2, 3, 4, 6];
  const larger = find("#map-in"), smaller = find("#map-out");
  let level = 0;
  const zoom = (to, x = pane.clientWidth / 2, y = pane.clientHeight / 2) => {
    const next = Math.max(0, Math.min(levels.length - 1, to));
    const part = levels[next] / levels[level];
    const left = (pane.scrollLeft + x) * part - x, top = (pane.scrollTop + y) * part - y;
    level = next;
    plane.style.setProperty("--zoom", levels[level]);
    pane.scrollTo({ left, top, behavior: "instant" });
    larger.disabled = level === levels.length - 1;
    smaller.disabled = level === 0;
    point(chosen);
  };
  // About the chosen image, which then keeps its place, else about the middle.
  const step = (by) => {
    const own = chosen?.getBoundingClientRect(), box = pane.getBoundingClientRect();
    const about = own ? [own.left + own.width / 2 - box.left, own.top + own.height / 2 - box.top] : [];
    zoom(level + by, ...about);
    reveal();
  };
  larger.addEventListener("click", () => step(1));
  smaller.addEventListener("click", () => step(-1));
  pane.addEventListener("wheel", (event) => {
    // As browsers send the gesture of two fingers.
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = pane.getBoundingClientRect();
    zoom(level - Math.sign(event.deltaY), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  pane.addEventListener("scroll", () => point(chosen));
  chooseOnMap = (label) => choose(thumbs.find((thumb) => thumb.dataset.label === label) || null);
  find("#map-zoom").hidden = false;
  zoom(0);
};

if (find(".plane")) makeMap(find(".plane"));
