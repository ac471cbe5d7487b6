/* Vectors as strips of signed bars, and numbers of a worked example. */

/** Three decimals, or two significant digits below 0.01, with a minus sign. */
function decimal(value) {
  if (value === -Infinity) return "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const digits = size >= 100 ? 1 : size >= 10 ? 2 : 3;
  const text = size >= 0.01 ? value.toFixed(digits) : String(Number(value.toPrecision(2)));
  return text.replaceAll("-", "−");
}

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const euclideanNorm = (vector) => Math.sqrt(dot(vector, vector));
const largestOf = (...vectors) =>
  Math.max(...vectors.map((vector) => vector.reduce((m, v) => Math.max(m, Math.abs(v)), 0)));
const times = (vector, factor) => Float64Array.from(vector, (value) => value * factor);
const combine = (a, b, operation) => Float64Array.from(a, (value, i) => operation(value, b[i]));

/** The indices of the largest absolute values. */
const largestIndices = (vector, count) =>
  [...vector.keys()].sort((i, j) => Math.abs(vector[j]) - Math.abs(vector[i])).slice(0, count);

/** A number that is part of a computation, by the name that the tests look it up with. */
const value = (name, number) => element("b", { class: "value", "data-value": name }, decimal(number));

/** A line of a worked example. */
const equation = (...items) => element("p", { class: "equation" }, ...items);

/** One row: a name, a bar for each number (up: positive), and the Euclidean norm. `scale` is a full bar. */
function vectorRow(name, vector, { scale = largestOf(vector), note = null, key = null } = {}) {
  const rest = note ?? `norm ${decimal(euclideanNorm(vector))}`;
  const readout = element("span", { class: "number soft vector-note" }, rest);
  const strip = svgElement(
    "svg",
    { viewBox: `0 -1 ${vector.length} 2`, preserveAspectRatio: "none", class: "strip", role: "img" },
    svgElement("path", { class: "negative", d: bars(vector, scale, (size) => size < 0) }),
    svgElement("path", { class: "positive", d: bars(vector, scale, (size) => size > 0) }),
  );
  strip.setAttribute("aria-label", `${vector.length} numbers, ${rest}`);
  strip.addEventListener("pointermove", (event) => {
    const box = strip.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const index = Math.max(0, Math.min(vector.length - 1, Math.floor(share * vector.length)));
    readout.textContent = `[${index}] ${decimal(vector[index])}`;
  });
  strip.addEventListener("pointerleave", () => (readout.textContent = rest));
  const row = element(
    "div",
    { class: "vector", "data-vector": key },
    element("span", { class: "vector-name" }, ...name),
    strip,
    readout,
  );
  row.numbers = vector;
  return row;
}

function bars(vector, scale, isShown) {
  const parts = [];
  const width = vector.length > 200 ? 1 : 0.8; // a gap between few bars
  vector.forEach((size, i) => {
    if (isShown(size)) parts.push(`M${i} 0h${width}v${(-size / (scale || 1)).toFixed(3)}h-${width}z`);
  });
  return parts.join("");
}

/** A product of two vectors written out: its largest terms, the sum of the others, and the total. */
function dotProduct(name, [left, a], [right, b]) {
  const terms = combine(a, b, (x, y) => x * y);
  const largest = largestIndices(terms, 3);
  const total = terms.reduce((sum, term) => sum + term, 0);
  const rest = largest.reduce((sum, i) => sum - terms[i], total);
  const table = element("tbody");
  const all = element(
    "details",
    {
      toggle: () => {
        if (table.rows.length) return;
        terms.forEach((term, i) =>
          table.append(
            element(
              "tr",
              {},
              numberCell(String(i), "rank"),
              numberCell(decimal(a[i])),
              numberCell(decimal(b[i])),
              numberCell(decimal(term)),
            ),
          ),
        );
      },
    },
    element("summary", {}, `All ${terms.length} terms`),
    element(
      "div",
      { class: "scroller terms" },
      element("table", {}, tableHead("", left, right, "product"), table),
    ),
  );
  return [
    equation(
      `${left} · ${right} = `,
      ...largest.flatMap((i, n) => [
        n ? " + " : "",
        element(
          "span",
          { class: "term", title: `dimension ${i}` },
          `${inBrackets(a[i])} × ${inBrackets(b[i])}`,
        ),
      ]),
      ...(terms.length > 3
        ? [element("span", { class: "soft" }, ` + ${terms.length - 3} smaller terms: `), inBrackets(rest)]
        : []),
      " = ",
      value(name, total),
    ),
    all,
  ];
}

const inBrackets = (number) => (number < 0 ? `(${decimal(number)})` : decimal(number));
