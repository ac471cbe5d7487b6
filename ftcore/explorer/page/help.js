/* The "?" beside each part of the page: two sentences, what one sees and what to look for. */

const HELP = {
  text: [
    "The text",
    isT5
      ? "The encoder reads the tokens (words or parts of words) of the first line as a whole, and the decoder " +
        "writes the second line, one token at a time. "
      : "The model reads the tokens (words or parts of words) of a prompt and continues it, one token at a time; " +
        "what it wrote is underlined darker. ",
    "A frame marks the current token, and colors mark the tokens that the selected head looks at from there: " +
      "step through the answer with ▶ and watch the colors move.",
  ],
  runs: [
    "Three answers",
    "Greedy search takes the most likely token at every step, sampling draws one at random by its " +
      "probability, and beam search keeps several texts at once and takes the best. ",
    "Look for the first token in which the answers differ.",
  ],
  network: [
    "The network and its residual stream",
    "The straight line is the residual stream, the vector of the current token on its way up through the " +
      "blocks; each sublayer reads it and adds its output to it, in a curve as wide as that output is long. ",
    "Look for the sublayers that add most, for the heads with the strongest color, and beside the stream for " +
      "the block after which the next token is settled.",
  ],
  tabs: [
    "The views",
    "Where heads look and how that is computed, what may come next and after which block it is settled, how " +
      "beam search got there, and what changes the answer: views of the same pass through the model. ",
    "Choose a token or head anywhere: every view follows.",
  ],
  attention: [
    "One head’s attention",
    "A row is a query, the token that looks, a column a key, a token that is looked at; a row’s weights sum to " +
      "1, and the head returns the values of the keys in this mixture. ",
    "Look for single dark cells (a token that is copied), lines beside the diagonal (a fixed distance) and dark " +
      "columns (a token that all others look at).",
  ],
  heads: [
    "All heads of a sublayer",
    "Each head compares and mixes the same tokens by queries, keys and values of its own. ",
    "Look for heads of different kinds, and open one to read its weights.",
  ],
  forward: [
    "A feed-forward layer",
    "It works on each token alone, where attention moves information between tokens; a bar is the norm, " +
      "the length, of the vector that it adds there. ",
    "Look for the tokens to which it adds much compared with their residual stream.",
  ],
  computation: [
    "One attention weight, computed",
    "Every step from the query and the key of two tokens to what the head adds to the stream, with this input’s " +
      "numbers, beside the lines of code. ",
    "Look which terms make the product large, what the softmax makes of a lead, and whose values the mix has.",
  ],
  neurons: [
    "Neurons",
    "A neuron makes one number, its activation, of the normed stream and its input weights, and adds its output " +
      "weights times that number to the stream. ",
    "Look how much of the layer’s output a few neurons write, and whether others do at the next token.",
  ],
  embedding: [
    "The embedding",
    isT5
      ? "The vector that the residual stream starts with: the token’s row of the embedding table. "
      : "The vector that the residual stream starts with: the token’s row of the embedding table plus the row of " +
        "its position. ",
    isT5
      ? "Compare the same word at two positions: it starts with the same vector, and only attention tells the " +
        "places apart."
      : "Compare the same word at two positions: only the position’s vector differs.",
  ],
  norm: [
    "A norm",
    isT5
      ? "RMSNorm divides the stream by the root of its mean square and multiplies each number by a learned weight. "
      : "LayerNorm subtracts the stream’s mean, divides by its standard deviation, and multiplies each number by " +
        "a learned weight and adds a learned bias. ",
    "Look for single large numbers in the stream, and what the weights leave of them.",
  ],
  next: [
    "The next token",
    "The probability of every token of the vocabulary to come next: the softmax of the logits divided by the " +
      "temperature, with top-k of the k largest only. ",
    "Look how far the first is ahead of the second, and how the temperature changes that.",
  ],
  lens: [
    "The logit lens",
    "The last norm and the output matrix turn the residual stream into probabilities of the next token; here " +
      "they are applied after every block, as if it were the last. ",
    "Read a column upwards and look for the block from which it has the framed token, the one that was written.",
  ],
  beams: [
    "Beam search",
    "A column is a step: the best extensions of the texts that were kept, joined to the text they extend. ",
    "Look for a text that starts behind others and ends before them: greedy search would have missed it.",
  ],
  interventions: [
    "Interventions",
    "Something inside the model is changed, and it answers again: a number says how much less likely the change " +
      "makes the recorded answer, in nats (0.7 is half as likely, 2.3 a tenth). ",
    "Look for the few large numbers: the answer depends on these places, and hardly on the others.",
  ],
  ablation: [
    "Head ablation",
    "Ablating a head is switching it off, at every token, while the model reads and answers. ",
    "Look for heads with a large number, open them in the network, and see what they look at.",
  ],
  patching: [
    "Activation patching",
    "A cell is one token after one block: its vector is replaced by the one that the second text has there. ",
    "Follow the large numbers from left to right: they show at which token, and up to which block, the stream " +
      "holds what the two texts’ answers differ in.",
  ],
};

let openHelp = null; // key of HELP

/** A "?" and the text that it opens, for the heading of a part. */
function help(key) {
  const [name, ...sentences] = HELP[key];
  const id = `help-${key}`;
  const isOpen = openHelp === key;
  return [
    button(
      {
        class: "help",
        "aria-label": `${name}: what is this?`,
        "aria-expanded": String(isOpen),
        "aria-controls": id,
        "data-key": id,
        click: () => showHelp(openHelp === key ? null : key),
      },
      "?",
    ),
    element("p", { class: "help-text", id, hidden: !isOpen }, ...sentences),
  ];
}

/** A heading with its "?". */
const headLine = (key, heading) => element("div", { class: "head-line" }, heading, ...help(key));

/** Open one text and close the others; null closes all. */
function showHelp(key) {
  openHelp = key;
  for (const node of document.querySelectorAll("button.help")) {
    const isOpen = node.dataset.key === `help-${key}`;
    node.setAttribute("aria-expanded", String(isOpen));
    byId(node.getAttribute("aria-controls")).hidden = !isOpen;
  }
}

function buildHelp() {
  for (const key of ["text", "network"]) byId(`${key}-title`).after(...help(key));
  byId("tabs").after(...help("tabs"));
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") showHelp(null);
  });
}
