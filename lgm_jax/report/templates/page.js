"use strict";
(() => {
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // Search: names that contain all words typed.
  const search = find("#search");
  if (search) {
    const items = all("[data-name]");
    const count = find("#count"), nothing = find("#nothing");
    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const item of items) {
        const name = item.dataset.name.toLowerCase();
        item.hidden = !words.every((word) => name.includes(word));
        shown += !item.hidden;
      }
      count.textContent = words.length
        ? `${shown} of ${items.length} classes` : `${items.length} classes`;
      nothing.hidden = shown > 0;
    };
    search.addEventListener("input", update);
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { search.value = ""; update(); }
    });
    update();
  }

  // A class enlarged, with what it is compared to.
  const viewer = find("#viewer");
  if (viewer && viewer.showModal) {
    const title = find("#viewer-title"), body = find("#viewer-body");
    let current = null;
    const figure = (image, name, text) => {
      const caption = make("figcaption", {}, make("b", { textContent: name }));
      if (text) caption.append(` ${text}`);
      return make("figure", {}, make("img", { src: image.src || image.dataset.src,
        alt: image.alt || image.dataset.alt }), caption);
    };
    const show = (card) => {
      current = card;
      title.textContent = card.dataset.name;
      body.replaceChildren(...all(".row", card).map((row) => {
        const [first, ...rest] = all("[data-title]", row);
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
    for (const card of all(".card")) {
      find(".open", card).addEventListener("click", () => { show(card); viewer.showModal(); });
    }
    find("#next").addEventListener("click", () => move(1));
    find("#previous").addEventListener("click", () => move(-1));
    find("#close").addEventListener("click", () => viewer.close());
    viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
    viewer.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight") move(1);
      if (event.key === "ArrowLeft") move(-1);
    });
    viewer.addEventListener("close", () => { if (current) find(".open", current).focus(); });
  }

  // Timelapse.
  const slider = find("#step");
  if (slider) {
    const frames = all(".frames img"), said = find("#step-said"), play = find("#play");
    let timer = null;
    const show = () => {
      const number = Number(slider.value);
      frames.forEach((frame, i) => { frame.hidden = i !== number; });
      said.textContent = frames[number].dataset.said;
      slider.setAttribute("aria-valuetext", frames[number].dataset.said);
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
    show();
  }

  // Map: a class's real images light up with its distilled one.
  const plane = find(".plane");
  if (plane) {
    const light = (label) => {
      plane.classList.toggle("hot", label !== null);
      for (const path of all("path", plane)) {
        path.classList.toggle("hot", path.dataset.label === label);
      }
    };
    for (const link of all("a", plane)) {
      for (const name of ["mouseenter", "focus"]) {
        link.addEventListener(name, () => light(link.dataset.label));
      }
      for (const name of ["mouseleave", "blur"]) link.addEventListener(name, () => light(null));
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
      code.append(button);
    }
  }
})();
