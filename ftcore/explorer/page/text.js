/* The text: tokens, coloured by what is looked at, and the steps through generation. */

const shownTokens = { source: [], target: [] }; // the buttons, by position

function buildText() {
  refill(
    byId("runs"),
    byId("runs").querySelector("legend"),
    ...recording.runs.map((one, number) =>
      element(
        "label",
        {},
        element("input", {
          type: "radio",
          name: "run",
          value: number,
          change: () => look({ run: number, at: kept(number) }),
        }),
        ` ${one.name}`,
      ),
    ),
  );
  buildTokens();
}

/** The position to go on with in another run: the same one, if it has that many. */
const kept = (number) => Math.min(state.at, recording.runs[number].ids.length - 2);

function buildTokens() {
  const lines = [];
  if (isT5) lines.push(line("source", "Encoder reads", source()));
  lines.push(line("target", isT5 ? "Decoder reads and writes" : "Reads and writes", run().ids));
  byId("tokens").replaceChildren(...lines);
  buildTokens.of = `${state.run}`;
}

function line(side, name, ids) {
  const root = element(
    "div",
    { class: "stream-of-tokens", role: "group", "aria-label": name },
    element("b", {}, name),
  );
  shownTokens[side] = ids.map((id, at) => {
    const text = piece(id);
    const last = side === "target" && at === ids.length - 1;
    const made = button(
      {
        dir: "auto",
        title: `${at}: ${short(text, 300)}`,
        "aria-label": `${at}: ${short(text, 80)}${last ? ", written last" : ""}`,
        "data-at": at,
        disabled: last, // nothing was read there
      },
      short(text).trimStart() || "␣",
    );
    const written = side === "target" && at >= promptLength();
    made.base = `token${text.startsWith(" ") ? " spaced" : ""}${written ? " written" : ""}`;
    root.append(made);
    if (text.endsWith("⏎")) root.append(element("br"));
    return made;
  });
  const find = (event) => event.target.closest?.("button[data-at]");
  root.addEventListener("click", (event) => {
    const made = find(event);
    if (!made) return;
    stop();
    look(side === "source" ? { src: Number(made.dataset.at) } : { at: Number(made.dataset.at) });
  });
  const point = (event) => {
    const made = find(event);
    setHover(made ? side : null, made ? Number(made.dataset.at) : null);
  };
  root.addEventListener("pointerover", point);
  root.addEventListener("pointerleave", () => setHover(null, null));
  root.addEventListener("focusin", point);
  root.addEventListener("focusout", () => setHover(null, null));
  roving(root);
  return root;
}

function setHover(side, at) {
  if (hover.side === side && hover.at === at) return;
  Object.assign(hover, { side, at });
  setHover.waiting ??= requestAnimationFrame(() => {
    setHover.waiting = null;
    showText(); // the network stays with the current position
    if (state.tab === "attention") panels.attention.draw();
  });
}

/** The query whose attention the tokens show: the one under the pointer, else the current position. */
function shownQuery(part) {
  const side = readsSource(part) ? "source" : "target";
  const most = queries(part).length - 1;
  return hover.side === side ? Math.min(hover.at, most) : position(part);
}

function showText() {
  if (buildTokens.of !== `${state.run}`) buildTokens();
  const part = parts[state.see];
  const strengths = strengthsOfTokens(part);
  for (const side of ["source", "target"]) {
    const current = side === "source" ? state.src : state.at;
    const root = shownTokens[side][0]?.parentElement;
    if (!root) continue;
    // First, as long as nothing has changed: after that the browser would have to lay the page out for it.
    if (root.current !== current) bringIntoView(root, shownTokens[side][(root.current = current)]);
    const shown = strengths.side === side ? strengths : null;
    const hue = shown ? ` kind-${part.kind}` : "";
    shownTokens[side].forEach((made, at) => {
      const level = shown && at < shown.weights.length ? (shown.weights[at] / 255).toFixed(3) : "0";
      if (made.level !== level) made.style.setProperty("--weight", (made.level = level));
      const later = side === "target" && at > state.at;
      const kind = `${made.base}${hue}${later ? " later" : ""}`;
      if (made.kind !== kind) made.className = made.kind = kind;
      if (made.current !== (at === current))
        made.setAttribute("aria-current", (made.current = at === current));
    });
    if (!root.contains(document.activeElement)) tabStop(root);
  }
  byId("reading").textContent = strengths.reading;
  for (const input of byId("runs").querySelectorAll("input"))
    input.checked = Number(input.value) === state.run;
  const slider = byId("position");
  slider.max = positions() - 1;
  slider.value = state.at;
  const written = quoted(run().ids[state.at + 1]);
  const prompted = state.at + 1 < promptLength();
  slider.setAttribute("aria-valuetext", `${state.at}, reads ${quoted(run().ids[state.at])}`);
  byId("position-text").textContent =
    `${state.at} of ${positions() - 1}: reads ${quoted(run().ids[state.at])}, ` +
    `${prompted ? "next is" : "writes"} ${written}`;
  byId("back").disabled = state.at === 0;
  byId("forth").disabled = state.at === positions() - 1;
}

/** Scroll a box, and not the page, so that something in it can be seen. */
function bringIntoView(box, item) {
  const [around, own] = [box.getBoundingClientRect(), item.getBoundingClientRect()];
  if (own.top < around.top) box.scrollTop += own.top - around.top;
  if (own.bottom > around.bottom) box.scrollTop += own.bottom - around.bottom;
}

/** How strongly each token is coloured, on which side, and the same in words. */
function strengthsOfTokens(part) {
  if (!part.pattern) {
    const side = readsSource(part) ? "source" : "target";
    const sizes = queries(part).map((_, at) => size("written", part.writes, part, at));
    const most = Math.max(...sizes) || 1;
    const at = shownQuery(part);
    return {
      side,
      weights: sizes.map((one) => (255 * one) / most),
      reading:
        `${part.writes} adds a vector of size ${number(sizes[at])} at ${quoted(queries(part)[at])}. ` +
        "Colour: how large it is at each token.",
    };
  }
  const query = shownQuery(part);
  const all = state.head < 0 ? Array.from({ length: model.heads }, (_, head) => head) : [state.head];
  const rows = all.map((head) => levels(part, head, query));
  const side = looksAtSource(part) ? "source" : "target";
  if (rows.includes(null)) return { side, weights: [], reading: "" };
  const count = looksAtSource(part) ? source().length : query + 1;
  const weights = new Float32Array(count);
  for (const row of rows)
    for (let key = 0; key < count; key++) weights[key] += weight(row[key]) / rows.length;
  const seen = [...weights.keys()].filter((key) => weights[key] > 0);
  const strongest = seen.sort((a, b) => weights[b] - weights[a]).slice(0, 4);
  const pointed =
    hover.side === side && side !== (readsSource(part) ? "source" : "target") ? [hover.at] : strongest;
  const who = state.head < 0 ? "the mean of all heads" : `head ${state.head}`;
  const list = pointed.map((key) => `${quoted(keys(part)[key])} ${number(weights[key])}`).join(", ");
  return {
    side,
    weights: weights.map((one) => 255 * Math.sqrt(one)),
    reading: `${part.pattern}, ${who}: from ${quoted(queries(part)[query])} (${query}) to ${list}`,
  };
}

let playing = null;

function stop() {
  clearInterval(playing);
  playing = null;
  byId("play").textContent = "▶▶";
  byId("play").setAttribute("aria-label", "Play");
}

function play() {
  if (playing) return stop();
  const begin = state.at === positions() - 1 ? promptLength() - 1 : state.at;
  look({ at: begin });
  byId("play").textContent = "■";
  byId("play").setAttribute("aria-label", "Stop");
  playing = setInterval(() => (state.at < positions() - 1 ? look({ at: state.at + 1 }) : stop()), 700);
}
