// A figure opens in a dialog as wide as the screen; a click, Escape or Enter closes it.
const shown = document.createElement("dialog");
shown.className = "enlarged";
shown.append(document.createElement("img"));
shown.addEventListener("click", () => shown.close());
document.body.append(shown);

function enlarge(event) {
  if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  const { src, alt } = event.currentTarget;
  Object.assign(shown.firstChild, { src, alt });
  shown.setAttribute("aria-label", alt);
  shown.showModal();
}

for (const image of document.querySelectorAll(".md-content img")) {
  // Those in a link lead elsewhere.
  if (image.closest("a")) continue;
  Object.assign(image, { tabIndex: 0, role: "button", title: "Enlarge" });
  image.addEventListener("click", enlarge);
  image.addEventListener("keydown", enlarge);
}
shown.addEventListener("keydown", (event) => event.key === "Enter" && shown.close());

// A browser would break a command after the hyphens of a flag: it may after spaces and commas, and
// outside of tables, which scroll, within words that are longer than a line of a phone.
for (const code of document.querySelectorAll(".md-typeset :not(pre) > code:not(:has(*))")) {
  const longest = code.closest("table") ? Infinity : 34;
  const parts = code.textContent.split(/(\s+)|(?<=,)/).filter(Boolean);
  code.replaceChildren(...parts.flatMap((part) => {
    if (!part.trim()) return part;
    const word = document.createElement("span");
    if (part.length <= longest) word.className = "word";
    word.textContent = part;
    return [word, ...part.endsWith(",") ? [document.createElement("wbr")] : []];
  }));
}

// What the theme leaves to be named, or to be reached by keyboard.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
for (const head of document.querySelectorAll(".md-typeset th:empty")) {
  head.replaceWith(document.createElement("td"));
}
addEventListener("load", () => {
  document.querySelectorAll(".md-code__nav").forEach((nav, i) => {
    nav.setAttribute("aria-label", `Code ${i + 1}`);
  });
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap, .highlight-ipynb")) {
    if (wide.scrollWidth <= wide.clientWidth) continue;
    wide.tabIndex = 0;
    wide.classList.add("wide");
    for (const cell of wide.querySelectorAll("td")) {
      cell.classList.toggle("long", cell.textContent.split(/\s+/).length > 4);
    }
  }
});
