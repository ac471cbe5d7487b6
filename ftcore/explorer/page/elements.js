/* Elements, and how the keyboard moves among them.

   The page's scripts are joined into one, in the order of SCRIPTS in page.py, so that each knows all names.
   Tokens may hold anything: they reach the page as text nodes and attributes only, never as markup. */

const byId = (id) => document.getElementById(id);

/** An element. Properties that are functions listen to the event of that name; children may be texts. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name === "style")
      for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
    else made.setAttribute(name, value === true ? "" : value);
  }
  fill(made, ...children);
  return made;
}

/** Append what is there: null stands for nothing. */
const fill = (root, ...children) => root.append(...children.filter((child) => child !== null));

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const button = (properties, ...children) => element("button", { type: "button", ...properties }, ...children);

/** The head of a table. */
const tableHead = (...names) =>
  element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));

/** A share of 1 as a bar, and perhaps a line where another share is. */
const bar = (share, mark = null) =>
  element(
    "span",
    { class: "measure" },
    element("i", { style: { "--weight": share.toFixed(4) } }),
    mark === null ? null : element("u", { style: { "--mark": mark.toFixed(4) } }),
  );

/** A cell of a table that holds a number. */
const figure = (text, kind = "") => element("td", { class: `number ${kind}` }, text);

/** Exchange what is in an element; the focus stays on what has the same data-key. */
function refill(root, ...children) {
  const key = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  root.replaceChildren(...children.filter((child) => child !== null));
  if (key) root.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

/** Make the buttons in an element one stop of the Tab key; arrows move among them. */
function roving(root) {
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
      ArrowUp: () => nearest(event.target, all, -1),
      ArrowDown: () => nearest(event.target, all, 1),
      Home: () => all[0],
      End: () => all.at(-1),
    }[event.key]?.();
    if (!there) return;
    event.preventDefault();
    there.focus();
  });
}

/** The button above (-1) or below (1), in what the eye sees. */
function nearest(from, all, direction) {
  const middle = (item) => {
    const box = item.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const [x, y] = middle(from);
  let best = null;
  let least = Infinity;
  for (const item of all) {
    const [itsX, itsY] = middle(item);
    const away = (itsY - y) * direction;
    const distance = away * 3 + Math.abs(itsX - x);
    if (away > 6 && distance < least) [best, least] = [item, distance];
  }
  return best;
}

/** After buttons were made anew: the pressed or current one, or else the first, is where Tab leads to. */
function tabStop(root) {
  const all = [...root.querySelectorAll("button")];
  const stop = all.find((item) => item.matches('[aria-pressed="true"], [aria-current="true"]')) ?? all[0];
  for (const item of all) {
    const index = item === stop || item === document.activeElement ? 0 : -1;
    if (item.tabIndex !== index) item.tabIndex = index; // writing costs more than reading
  }
}

/** Two digits that count, however small. */
const number = (value) => (Math.abs(value) >= 1 ? value.toFixed(2) : String(Number(value.toPrecision(2))));
const percent = (value) => {
  const hundredths = 100 * value;
  if (hundredths > 0 && hundredths < 0.001) return "< 0.001 %";
  return `${hundredths >= 9.95 ? hundredths.toFixed(0) : Number(hundredths.toPrecision(2))} %`;
};
