"""A page in Chromium."""


class Visit:
    """A browser tab, with its errors and requests."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(reduced_motion="reduce", **options)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on(
            "console",
            lambda message: message.type in ("error", "warning") and self.errors.append(message.text),
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append("a dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.go(address)

    def go(self, address):
        self.page.goto(address)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        self.settle()

    def settle(self):
        """Wait until the page is rendered and attention is unpacked."""
        frame = "await new Promise((done) => setTimeout(() => requestAnimationFrame(done), 5));"
        self.page.evaluate(
            f"""async () => {{
              do {{ {frame} {frame} }} while (document.getElementById("panel").ariaBusy === "true");
              {frame}
            }}"""
        )

    def click(self, selector):
        self.page.locator(selector).first.click()
        self.settle()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def set(self, selector, value, event="input"):
        """Change the value of a slider or a select element."""
        self.page.locator(selector).evaluate(
            """(input, [value, event]) => {
              input.value = value;
              input.dispatchEvent(new Event(event, { bubbles: true }));
            }""",
            [str(value), event],
        )
        self.settle()

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()

    def rows(self, selector):
        """The rows of a table: cell texts, bar length and token id."""
        return self.page.locator(selector).first.evaluate(
            """(table) => [...table.querySelectorAll("tbody tr")].map((row) => ({
              cells: [...row.cells].map((cell) => cell.textContent),
              bar: Number(row.querySelector(".measure i")?.style.getPropertyValue("--weight")),
              token: Number(row.dataset.token),
            }))"""
        )

    def state(self):
        self.page.wait_for_timeout(200)
        return dict(pair.split("=", 1) for pair in self.page.evaluate("location.hash.slice(1)").split("&"))
