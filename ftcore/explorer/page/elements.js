/* DOM helpers and keyboard navigation.

   The page's scripts are concatenated in the order of SCRIPTS in page.py and share one scope.
   Tokens can hold any text: they are inserted as text nodes and attributes, never as markup. */

const byId = (id) => document.getElementById(id);

/** Create an element. Function properties become event listeners; null children are skipped. */
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "style")
      for (const [key, item] of Object.entries(value)) node.style.setProperty(key, item);
    else node.setAttribute(name, value === true ? "" : value);
  }
  appendAll(node, ...children);
  return node;
}

const appendAll = (root, ...children) => root.append(...children.filter((child) => child !== null));

function svgElement(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const button = (properties, ...children) => element("button", { type: "button", ...properties }, ...children);

const sentence = (...items) => element("p", { class: "soft" }, ...items);
const lede = (...items) => element("p", { class: "lede" }, ...items);

const scrolling = (child) => element("div", { class: "scroller" }, child);

/** A table that scrolls sideways on a narrow screen. */
const inScroller = (...contents) => scrolling(element("table", ...contents));

const tableHead = (...names) =>
  element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));

/** A bar of length `share` (0 to 1), with an optional reference line at `mark`. */
const bar = (share, mark = null) =>
  element(
    "span",
    { class: "measure" },
    element("i", { style: { "--weight": share.toFixed(4) } }),
    mark === null ? null : element("u", { style: { "--mark": mark.toFixed(4) } }),
  );

const numberCell = (text, kind = "") => element("td", { class: `number ${kind}` }, text);

/** Replace an element's children; focus moves to the new child with the same data-key. */
function replaceContent(root, ...children) {
  const key = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  root.replaceChildren(...children.filter((child) => child !== null));
  if (key) root.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** Roving tabindex: the buttons in an element are one tab stop, arrow keys move between them. */
function rovingTabIndex(root) {
  const items = () => [...root.querySelectorAll("button:not(:disabled)")];
  root.addEventListener("focusin", (event) => {
    for (const item of root.querySelectorAll('button[tabindex="0"]')) item.tabIndex = -1;
    event.target.tabIndex = 0;
  });
  root.addEventListener("keydown", (event) => {
    const all = items();
    const here = all.indexOf(event.target);
    if (here < 0) return;
    const there = {
      ArrowLeft: () => all[here - 1],
      ArrowRight: () => all[here + 1],
      ArrowUp: () => nearestVertically(event.target, all, -1),
      ArrowDown: () => nearestVertically(event.target, all, 1),
      Home: () => all[0],
      End: () => all.at(-1),
    }[event.key]?.();
    if (!there) return;
    event.preventDefault();
    there.focus();
  });
}

/** The closest button above (direction -1) or below (1) on screen. */
function nearestVertically(from, all, direction) {
  const center = (item) => {
    const box = item.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [x, y] = center(from);
  let best = null;
  let shortest = Infinity;
  for (const item of all) {
    const [itemX, itemY] = center(item);
    const dy = (itemY - y) * direction;
    const distance = dy * 3 + Math.abs(itemX - x);
    if (dy > 6 && distance < shortest) [best, shortest] = [item, distance];
  }
  return best;
}

/** After a rebuild: Tab leads to the pressed or current button, or else the first. */
function resetTabStop(root) {
  const all = [...root.querySelectorAll("button")];
  const stop = all.find((item) => item.matches('[aria-pressed="true"], [aria-current="true"]')) ?? all[0];
  for (const item of all) {
    const index = item === stop || item === document.activeElement ? 0 : -1;
    if (item.tabIndex !== index) item.tabIndex = index; // skip redundant DOM writes
  }
}

/** Two significant digits. */
const number = (value) => (Math.abs(value) >= 1 ? value.toFixed(2) : String(Number(value.toPrecision(2))));
const percent = (value) => {
  const hundredths = 100 * value;
  if (hundredths > 0 && hundredths < 0.001) return "< 0.001 %";
  return `${hundredths >= 9.95 ? hundredths.toFixed(0) : Number(hundredths.toPrecision(2))} %`;
};
