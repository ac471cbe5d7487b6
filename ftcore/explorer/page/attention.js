/* The attention panel: one head as a heatmap and a table, all heads as small heatmaps, or feed-forward norms. */

const imageCache = new Map(); // heatmaps with one pixel per weight, by recording, run, sublayer and head
const MAX_CACHED_IMAGES = 60;

/** A head's heatmap, queries down and keys across; null while its weights are being unpacked. */
function headImage(part, head) {
  const name = `${recording.id} ${state.run} ${part.pattern} ${head}`;
  if (imageCache.has(name)) return imageCache.get(name);
  const [height, width] = [queries(part).length, keys(part).length];
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colors = colorScale(part.kind);
  for (let query = 0; query < height; query++) {
    const row = attentionLevels(part, head, query);
    if (!row) return null;
    const count = Math.min(row.length, width);
    for (let key = 0; key < count; key++) pixels[query * width + key] = colors[row[key]];
    pixels.fill(colors[0], query * width + count, (query + 1) * width);
  }
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  if (imageCache.size >= MAX_CACHED_IMAGES) imageCache.delete(imageCache.keys().next().value);
  imageCache.set(name, canvas);
  return canvas;
}

/** 256 colors from the background to a kind's hue, as little-endian RGBA. */
function colorScale(kind) {
  const read = (color) => color.match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
  const { sunk, cross, self } = themeColors;
  const [from, to] = [read(sunk), read(kind === "cross-attention" ? cross : self)];
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const [red, green, blue] = from.map((start, channel) =>
      Math.round(start + ((to[channel] - start) * level) / 255),
    );
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
}

panels.attention = {
  key: () => `${state.part} ${state.head < 0} ${state.run}`,
  build(root) {
    const part = parts[state.part];
    root.className = `kind-${part.kind}`;
    if (!part.pattern) buildNorms(root, part);
    else if (state.head < 0) buildAllHeads(root, part);
    else buildHead(root, part);
  },
  update() {
    this.draw();
  },
  draw() {},
};

/** A feed-forward layer: the norm of its output at every token. */
function buildNorms(root, part) {
  const table = element("tbody");
  appendAll(
    root,
    element(
      "div",
      { class: "head-line" },
      element("h3", {}, title(part)),
      button({ click: () => setState({ tab: "computation", open: "" }) }, "Neurons"),
      ...help("forward"),
    ),
    sentence(
      "A feed-forward layer has no attention: it reads one token at a time. ",
      "These are the Euclidean norms of its output and of the residual stream after it.",
    ),
    inScroller(
      { class: `bars kind-${part.kind}` },
      element("caption", {}, element("code", {}, part.output)),
      tableHead("position", "token", "output", "", "residual"),
      table,
    ),
    pythonRecord(part.output, ".norm(dim=-1)  # (B, T)"),
  );
  panels.attention.draw = () => {
    const norms = queries(part).map((_, at) => normAt("output_norms", part.output, part, at));
    const largest = Math.max(...norms) || 1;
    const shown = windowAround(queries(part).length, position(part), 40);
    replaceContent(
      table,
      ...shown.map((at) =>
        element(
          "tr",
          { class: at === position(part) ? "chosen" : "" },
          numberCell(String(at), "rank"),
          element("td", {}, tokenSpan(queries(part)[at])),
          element("td", { class: "share" }, bar(norms[at] / largest)),
          numberCell(number(norms[at])),
          numberCell(number(normAt("residual_norms", part.residual, part, at))),
        ),
      ),
    );
  };
}

/** All heads of one attention as small heatmaps. */
function buildAllHeads(root, part) {
  const canvases = [];
  appendAll(
    root,
    headLine("heads", element("h3", {}, `${title(part)}: all heads`)),
    sentence(mapHint(part)),
    element(
      "div",
      { class: "small-maps" },
      ...Array.from({ length: model.heads }, (_, head) => {
        const canvas = element("canvas", { "aria-hidden": "true" });
        canvases.push(canvas);
        return button(
          {
            click: () => setState({ head }),
            "data-key": `map ${head}`,
            "aria-label": `Head ${head}, larger`,
          },
          `head ${head}`,
          canvas,
        );
      }),
    ),
  );
  rovingTabIndex(root.querySelector(".small-maps"));
  resetTabStop(root.querySelector(".small-maps"));
  panels.attention.draw = () =>
    canvases.forEach((canvas, head) => {
      const image = headImage(part, head);
      if (!image || canvas.image === image) return;
      // Enlarge short texts by a whole factor, so that a weight is a square.
      const scale = Math.max(1, Math.floor(240 / Math.max(image.width, image.height)));
      Object.assign(canvas, { width: image.width * scale, height: image.height * scale, image });
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
    });
}

const mapHint = (part) =>
  `Rows are queries, columns are ${part.kind === "cross-attention" ? "the encoder’s " : ""}keys. ` +
  "Color shows the square root of the weight, which makes small weights visible.";

/* Sizes of a head's map, in pixels. The labels of all tokens are drawn up to `labelled` keys, and the map scrolls
   if they do not fit; beyond, the map fits if it can and labels are thinned out. */
const MAP = { labelled: 70, cell: [14, 24], smallCell: [2, 24], line: 11, left: 96, top: 88, slant: 36 };
const MAP_FONT = `${MAP.line}px ui-monospace, monospace`;

/** One head: a heatmap, and a table of the current query's largest weights. */
function buildHead(root, part) {
  const heading = element("h3");
  const readout = element("p", { class: "soft", "aria-live": "polite" });
  const [rows, columns] = [queries(part), keys(part)];
  const canvas = element("canvas", { role: "img", tabindex: 0 });
  const cursor = element("canvas", { class: "cursor", "aria-hidden": "true" });
  const rowLabels = element("canvas", { class: "row-labels", "aria-hidden": "true" });
  const columnLabels = element("canvas", { class: "column-labels", "aria-hidden": "true" });
  const cells = element("div", { class: "cells" }, canvas, cursor);
  const scroller = scrolling(element("div", { class: "labelled-map" }, cells, rowLabels, columnLabels));
  const table = element("tbody");
  const caption = element("caption");
  const code = element("div");
  appendAll(
    root,
    element(
      "div",
      { class: "head-line" },
      button(
        {
          click: () => setState({ head: (state.head + model.heads - 1) % model.heads }),
          "aria-label": "Previous head",
          "data-key": "previous",
        },
        "‹",
      ),
      button(
        {
          click: () => setState({ head: (state.head + 1) % model.heads }),
          "aria-label": "Next head",
          "data-key": "following",
        },
        "›",
      ),
      heading,
      button({ click: () => setState({ head: -1 }) }, "All heads"),
      button(
        { click: () => setState({ tab: "interventions", interventions: `${part.z}:${state.head}` }) },
        "Ablate",
      ),
      ...help("attention"),
    ),
    sentence(mapHint(part)),
    element(
      "div",
      { class: "attention" },
      element(
        "div",
        { class: columns.length > 24 ? "map wide" : "map" },
        scroller,
        readout,
      ),
      element(
        "div",
        { class: "weights" },
        element("table", { class: "bars" }, caption, tableHead("position", "token", "weight", ""), table),
      ),
    ),
    code,
  );
  let pointed = null; // [query, key] under the pointer or moved to by arrow keys
  let available = 0; // width in pixels
  let cell = 1; // pixels per weight
  let left = 0; // width of the row labels
  const pick = (event) => {
    const box = canvas.getBoundingClientRect();
    const [key, query] = [
      Math.floor((event.clientX - box.left) / cell),
      Math.floor((event.clientY - box.top) / cell),
    ];
    return query >= 0 && key >= 0 && query < rows.length && key < columns.length ? [query, key] : null;
  };
  const point = (indices) => {
    pointed = indices;
    drawCursor();
  };
  canvas.addEventListener("pointermove", (event) => point(pick(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const indices = pick(event);
    if (indices) openCell(part, ...indices);
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && pointed) openCell(part, ...pointed);
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [query, key] = pointed ?? [position(part), 0];
    const clamp = (value, length) => Math.max(0, Math.min(value, length - 1));
    point([clamp(query + step[0], rows.length), clamp(key + step[1], columns.length)]);
    scrollToKey(pointed[1]);
    if (step[0]) setState(inEncoder(part) ? { src: pointed[0] } : { at: pointed[0] });
  });

  function scrollToKey(key) {
    const most = key * cell; // the labels of the rows stay at the left
    const least = most + cell - (scroller.clientWidth - left);
    scroller.scrollLeft = Math.max(least, Math.min(scroller.scrollLeft, most));
  }

  function drawMap() {
    const image = available > 0 ? headImage(part, state.head) : null;
    if (!image || (canvas.image === image && canvas.available === available)) return;
    Object.assign(canvas, { image, available });
    const [smallest, largest] = columns.length > MAP.labelled ? MAP.smallCell : MAP.cell;
    left = rowLabelWidth(rows);
    const fitting = (available - left - MAP.slant) / columns.length;
    cell = Math.max(smallest, Math.min(largest, fitting));
    const [width, height] = [cell * columns.length, cell * rows.length];
    sizeCanvas(cursor, width, height);
    const context = sizeCanvas(canvas, width, height);
    context.imageSmoothingEnabled = false;
    context.drawImage(image, 0, 0, width, height);
    drawRowLabels(sizeCanvas(rowLabels, left, height), rows, cell, left);
    drawColumnLabels(sizeCanvas(columnLabels, width + MAP.slant, MAP.top), columns, cell);
    canvas.setAttribute(
      "aria-label",
      `Attention of ${title(part)}, head ${state.head}: ${rows.length} by ${columns.length} weights. ` +
        "Arrow keys move over them; the table lists the largest of the current query.",
    );
  }

  function drawCursor() {
    const context = cursor.getContext("2d");
    context.clearRect(0, 0, cursor.width, cursor.height);
    context.strokeStyle = themeColors.text;
    context.lineWidth = 1.5;
    context.strokeRect(0, position(part) * cell, cell * columns.length, Math.max(cell, 2));
    if (!pointed) {
      readout.textContent =
        "Point at the map or use arrow keys to read a weight. Click it or press Enter to see how it is computed.";
      return;
    }
    const [query, key] = pointed;
    context.strokeRect(key * cell - 1, query * cell - 1, cell + 2, cell + 2);
    const row = attentionLevels(part, state.head, query);
    const value = row && key < row.length ? fromLevel(row[key]) : 0;
    const [from, to] = [`${quote(rows[query])} (${query})`, `${quote(columns[key])} (${key})`];
    readout.textContent = `from ${from} to ${to}: ${number(value)}`;
  }

  panels.attention.draw = () => {
    heading.textContent = `${title(part)}, head ${state.head}`;
    drawMap();
    drawCursor();
    const query = shownQuery(part);
    const row = attentionLevels(part, state.head, query);
    if (!row) return;
    caption.textContent = `Largest weights of query ${quote(rows[query])} (${query})`;
    const strongest = [...row.keys()]
      .slice(0, columns.length)
      .filter((key) => row[key] > 0)
      .sort((a, b) => row[b] - row[a])
      .slice(0, 10);
    replaceContent(
      table,
      ...strongest.map((key) =>
        element(
          "tr",
          {},
          numberCell(String(key), "rank"),
          element("td", {}, tokenSpan(columns[key])),
          numberCell(number(fromLevel(row[key]))),
          element("td", { class: "share" }, bar(fromLevel(row[key]))),
        ),
      ),
    );
    if (code.dataset.head !== String(state.head)) {
      code.dataset.head = state.head;
      replaceContent(code, pythonRecord(part.pattern, `[0, ${state.head}]  # (T, S)`));
    }
  };
  new ResizeObserver(([entry]) => {
    available = entry.contentRect.width;
    render();
  }).observe(scroller);
}

/** Set the size of a canvas in CSS pixels; returns its context in these units. */
function sizeCanvas(canvas, width, height) {
  const ratio = Math.min(devicePixelRatio, 8000 / Math.max(width, height));
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

const rowLabel = (id) => label(id, 13);

/** The width of the longest row label, at most MAP.left. */
function rowLabelWidth(tokens) {
  const context = element("canvas").getContext("2d");
  context.font = MAP_FONT;
  return Math.min(MAP.left, Math.max(...tokens.map((id) => context.measureText(rowLabel(id)).width)) + 8);
}

/** Draw the tokens' labels, or every n-th one if a cell is lower than a line. */
function drawLabels(context, tokens, cell, draw) {
  context.fillStyle = themeColors.soft;
  context.font = MAP_FONT;
  context.textBaseline = "middle";
  const step = Math.ceil(MAP.line / cell);
  const [first, last] = [MAP.line / 2, tokens.length * cell - MAP.line / 2];
  for (let at = 0; at < tokens.length; at += step)
    draw(tokens[at], Math.max(first, Math.min((at + 0.5) * cell, last)));
}

function drawRowLabels(context, tokens, cell, width) {
  context.textAlign = "right";
  drawLabels(context, tokens, cell, (id, y) =>
    context.fillText(rowLabel(id), width - 5, y, width - 8),
  );
}

function drawColumnLabels(context, tokens, cell) {
  drawLabels(context, tokens, cell, (id, x) => {
    context.save();
    context.translate(x, MAP.top - 5);
    context.rotate(-Math.PI / 2.6);
    context.fillText(label(id, 12), 0, 0, MAP.top);
    context.restore();
  });
}

/** At most `count` consecutive positions around `center`. */
function windowAround(length, center, count) {
  const first = Math.max(0, Math.min(center - (count >> 1), length - count));
  return Array.from({ length: Math.min(count, length) }, (_, step) => first + step);
}
