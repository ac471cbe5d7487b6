/* The lines of the model's code that compute a step, with the shapes of this input. */

const letterSizes = (part) => ({
  ...content.source.sizes,
  B: 1,
  N: 1, // beams of a source, in T5's decoder
  T: queries(part).length,
  S: keys(part).length,
});

/** Shapes in comments such as "(B, H, T, S)" with this input's sizes. */
function withSizes(line, sizes) {
  const shape = /\((?=[^()]*[BTSDHKFVN])(?=[^()]*,)(?:[BTSDHKFVN]|\d+|or|so far|[,* ])+\)/g;
  const filled = [];
  let end = 0;
  for (const match of line.matchAll(shape)) {
    const numbers = match[0].replace(/\b[BTSDHKFVN]\b/g, (letter) => sizes[letter]).replace("1 * 1", "1");
    filled.push(line.slice(end, match.index), element("mark", { title: match[0] }, numbers));
    end = match.index + match[0].length;
  }
  return [...filled, line.slice(end)];
}

/** The passages of a step: its lines, and on a click the whole functions around them. */
function sourcePassages(part, step) {
  const prefix = part.output.split(".").length > 2 ? part.output.split(".")[0] : "";
  const sizes = letterSizes(part);
  return element(
    "div",
    { class: "source" },
    ...content.source.steps[prefix][step].map(([index, marked]) =>
      passage(content.source.functions[index], marked, sizes),
    ),
  );
}

function passage({ file, first, lines }, marked, sizes) {
  const shown = marked.length ? marked : [0]; // an edited function may lack the line
  const whole = element("pre", { tabindex: 0 });
  return element(
    "details",
    {
      toggle: () => {
        if (whole.children.length) return;
        lines.forEach((line, i) => whole.append(codeLine(line, first + i, sizes, marked.includes(i))));
      },
    },
    element(
      "summary",
      { title: "The whole function" },
      element("span", { class: "where" }, `${file}, line ${lineNumbers(shown.map((i) => first + i))}`),
      ...shown.map((i) =>
        element("code", {}, ...withSizes(lines[i].slice(indentation(lines, shown, i)), sizes)),
      ),
    ),
    whole,
  );
}

/** The indentation of the statement of a line: that of the first of consecutive lines. */
const indentation = (lines, shown, i) =>
  shown.includes(i - 1)
    ? Math.min(indentation(lines, shown, i - 1), lines[i].search(/\S/))
    : lines[i].search(/\S/);

/** "3, 5–7" for 3, 5, 6, 7. */
const lineNumbers = (numbers) =>
  numbers
    .map((each, i) =>
      each !== numbers[i - 1] + 1 ? `, ${each}` : each !== numbers[i + 1] - 1 ? `–${each}` : "",
    )
    .join("")
    .slice(2);

const codeLine = (line, number, sizes, isMarked) =>
  element(
    "span",
    { class: isMarked ? "line marked" : "line" },
    element("i", { "aria-hidden": "true" }, String(number)),
    element("code", {}, ...withSizes(line, sizes)),
  );
