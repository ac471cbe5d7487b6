/* The next token panel: probabilities under any temperature and top-k. */

const TOP_K = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 0]; // 0: all
const MOST_ROWS = 20;

/** A slider through the values of a list. */
const slider = (id, name, values, choose) =>
  element("input", {
    type: "range",
    min: 0,
    max: values.length - 1,
    id,
    "aria-label": name,
    input: (event) => choose(values[event.target.value]),
  });

panels.next = {
  key: () => "",
  build(root) {
    root.className = "";
    const steps = recording.temperatures;
    const choices = TOP_K.filter((k) => k <= recording.runs[0].next.ids.shape[1]);
    this.heading = element("h3");
    this.temperature = slider("temperature", "Temperature", steps, (temperature) => setState({ temperature }));
    this.temperatureText = element("output", { class: "number" });
    this.k = slider("top-k", "Top-k", choices, (k) => setState({ k }));
    this.kText = element("output", { class: "number" });
    this.choices = choices;
    this.body = element("tbody");
    this.rest = sentence();
    appendAll(
      root,
      headLine("next", this.heading),
      element(
        "div",
        { class: "sliders" },
        element("label", {}, element("span", {}, "Temperature"), this.temperature, this.temperatureText),
        element("label", {}, element("span", {}, "Top-k"), this.k, this.kText),
      ),
      element(
        "table",
        { class: "bars" },
        element("caption", {}, "Probability of each next token. Thin line: at temperature 1 without top-k."),
        tableHead("rank", "token", "probability", ""),
        this.body,
      ),
      this.rest,
      live ? button({ click: sampleAgain }, "Sample an answer with these settings") : null,
      sentence(
        `Recorded: the top ${recording.runs[0].next.ids.shape[1]} logits at each position, and the log-sum-exp `,
        "over the whole vocabulary at each temperature. These probabilities are exact at every setting.",
      ),
    );
  },
  update() {
    const { tokens, chosen, probability, rank, plain } = nextTokens(state.at);
    this.heading.textContent = `After ${quote(runTokens()[state.at])} (position ${state.at})`;
    this.temperature.value = recording.temperatures.indexOf(state.temperature);
    this.temperatureText.textContent = state.temperature.toFixed(1);
    const distances = this.choices.map((k) =>
      state.k === 0 ? (k === 0 ? 0 : 1) : k === 0 ? 1e6 : Math.abs(k - state.k),
    );
    this.k.value = distances.indexOf(Math.min(...distances));
    this.k.setAttribute("aria-valuetext", state.k || "all");
    this.kText.textContent = state.k || "all";
    const rows = tokens
      .slice(0, MOST_ROWS)
      .map(([id, share], i) => this.row(i, id, share, plain(id), id === chosen));
    if (rank >= rows.length) rows.push(this.row(rank, chosen, probability, plain(chosen), true));
    replaceContent(this.body, ...rows);
    const shown = tokens.slice(0, MOST_ROWS).reduce((sum, [, share]) => sum + share, 0);
    const others = percent(Math.max(0, 1 - shown));
    const count = Math.min(MOST_ROWS, tokens.length);
    this.rest.textContent = `Top ${count} in total: ${percent(shown)}, all others: ${others}.`;
  },
  row: (rank, id, probability, plain, isChosen) =>
    element(
      "tr",
      { class: isChosen ? "chosen" : "", "data-token": id },
      numberCell(String(rank + 1), "rank"),
      element("td", {}, tokenSpan(id), isChosen ? " ←\u00a0chosen" : ""),
      numberCell(percent(probability)),
      element("td", { class: "share" }, bar(probability, plain)),
    ),
};
