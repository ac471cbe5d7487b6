/* The panel of the next token, under any temperature and top-k. */

const TOP_K = [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 0]; // 0: all
const MOST_ROWS = 20;

panels.next = {
  key: () => "",
  build(root) {
    root.className = "";
    const steps = recording.temperatures;
    const choices = TOP_K.filter((k) => k <= recording.runs[0].next.ids.shape[1]);
    this.heading = element("h3");
    this.temperature = element("input", {
      type: "range",
      min: 0,
      max: steps.length - 1,
      id: "temperature",
      "aria-label": "Temperature",
      input: (event) => look({ temperature: steps[event.target.value] }),
    });
    this.temperatureText = element("output", { class: "number" });
    this.k = element("input", {
      type: "range",
      min: 0,
      max: choices.length - 1,
      id: "top-k",
      "aria-label": "Top-k",
      input: (event) => look({ k: choices[event.target.value] }),
    });
    this.kText = element("output", { class: "number" });
    this.choices = choices;
    this.body = element("tbody");
    this.rest = element("p", { class: "soft" });
    fill(
      root,
      this.heading,
      element(
        "div",
        { class: "sliders" },
        element("label", {}, element("span", {}, "Temperature"), this.temperature, this.temperatureText),
        element("label", {}, element("span", {}, "Top-k"), this.k, this.kText),
      ),
      element(
        "table",
        { class: "bars" },
        element("caption", {}, "Probability of each next token. The thin line: without the sliders."),
        tableHead("rank", "token", "probability", ""),
        this.body,
      ),
      this.rest,
      live ? button({ click: sampleAgain }, "Sample an answer with these settings") : null,
      element(
        "p",
        { class: "soft" },
        `Recorded: the ${recording.runs[0].next.ids.shape[1]} likeliest logits at each position, and `,
        "the logarithm of the whole vocabulary’s sum at each temperature. So these probabilities are exact ",
        "at every setting of the sliders, and all others together are the rest.",
      ),
    );
  },
  update() {
    const { tokens, chosen, probability, rank, plain } = nextTokens(state.at);
    this.heading.textContent = `After ${quoted(run().ids[state.at])} (position ${state.at})`;
    this.temperature.value = recording.temperatures.indexOf(state.temperature);
    this.temperatureText.textContent = state.temperature.toFixed(1);
    const nearby = this.choices.map((k) =>
      state.k === 0 ? (k === 0 ? 0 : 1) : k === 0 ? 1e6 : Math.abs(k - state.k),
    );
    this.k.value = nearby.indexOf(Math.min(...nearby));
    this.k.setAttribute("aria-valuetext", state.k || "all");
    this.kText.textContent = state.k || "all";
    const rows = tokens
      .slice(0, MOST_ROWS)
      .map(([id, one], place) => this.row(place, id, one, plain(id), id === chosen));
    if (rank >= rows.length) rows.push(this.row(rank, chosen, probability, plain(chosen), true));
    refill(this.body, ...rows);
    const shown = tokens.slice(0, MOST_ROWS).reduce((sum, [, one]) => sum + one, 0);
    const others = percent(Math.max(0, 1 - shown));
    const count = Math.min(MOST_ROWS, tokens.length);
    this.rest.textContent = `The first ${count} together ${percent(shown)}, all others ${others}.`;
  },
  row: (rank, id, probability, plain, isChosen) =>
    element(
      "tr",
      { class: isChosen ? "chosen" : "", "data-token": id },
      figure(String(rank + 1), "rank"),
      element("td", {}, token(id), isChosen ? " ← written" : ""),
      figure(percent(probability)),
      element("td", { class: "share" }, bar(probability, plain)),
    ),
};
