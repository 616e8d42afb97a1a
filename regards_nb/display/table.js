// The table of regards_nb for anywidget. The kernel sends the texts above and below the table, the
// order of the rows, and each row that changed; the page changes only the nodes that differ, so a
// selected text stays selected. Texts are set as text, never as HTML.

const SLOTS = 50;
const SIGN = { waits: "▼", failed: "✕", incomplete: "▲", running: "●", done: "✓", gone: "○" };
const TEXTS = [
  "headline", "fraction", "overall", "counts", "health", "health_severity", "standstill", "note",
  "more", "problems", "answer", "has_filter", "waiting",
];
const EMPTY = { number: "", remarks: [], actions: [] };
const BUTTONS = [
  ["download", "Download"],
  ["pause", "Pause"],
  ["resume", "Resume"],
  ["retry", "Retry"],
  ["cancel", "Cancel order"],
];

function node(tag, name, parent) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
}

function setText(element, words) {
  if (element.textContent !== words) element.textContent = words;
  const hidden = words === "";
  if (element.hidden !== hidden) element.hidden = hidden;
}

function setClass(element, name) {
  if (element.className !== name) element.className = name;
}

function setBar(bar, fraction) {
  const hidden = fraction === null || fraction === undefined;
  if (bar.hidden !== hidden) bar.hidden = hidden;
  if (!hidden && bar.value !== fraction) bar.value = fraction;
}

function bar(name, parent) {
  const made = node("progress", name, parent);
  made.max = 1;
  return made;
}

function signed(element, severity, words) {
  if (!element.firstChild) {
    const sign = node("i", "rg-sign", element);
    sign.setAttribute("aria-hidden", "true");
    element.append("\u00a0");
    node("span", "", element);
  }
  setClass(element, `rg-${severity}`);
  setText(element.firstChild, SIGN[severity] ?? "●");
  setText(element.lastChild, words);
}

// One row of the table; its cells are made once.
class Row {
  constructor() {
    this.element = document.createElement("tr");
    const title = node("th", "", this.element);
    title.scope = "row";
    this.name = node("div", "rg-name", title);
    this.number = node("div", "rg-id", title);
    const parts = node("td", "", this.element);
    this.bar = bar("rg-parts-bar", parts);
    parts.append(" ");
    this.parts = node("span", "rg-parts", parts);
    const files = node("div", "rg-files", parts);
    this.bytes = bar("rg-bytes-bar", files);
    files.append(" ");
    this.files = node("span", "", files);
    const status = node("td", "", this.element);
    this.status = node("span", "", status);
    this.timing = node("div", "rg-time", status);
    this.remarks = node("td", "rg-remarks", this.element);
    this.act = node("span", "rg-act", this.remarks);
    this.rest = node("span", "", this.remarks);
  }

  show(row) {
    setClass(this.element, `rg-${row.severity}`);
    const title = `${row.number} ${row.name}`.trim();
    setText(this.name, row.name);
    if (this.name.title !== (row.full ?? "")) this.name.title = row.full ?? "";
    setText(this.number, row.number);
    setBar(this.bar, row.fraction);
    this.bar.ariaLabel = `parts of order ${title}`;
    setText(this.parts, row.parts);
    setBar(this.bytes, row.fetched);
    this.bytes.ariaLabel = `bytes of order ${title}`;
    setText(this.files, row.files);
    signed(this.status, row.severity, row.status);
    setText(this.timing, row.timing);
    const urgent = row.severity === "waits" && row.remarks.length > 0;
    setText(this.act, urgent ? row.remarks[0] : "");
    const rest = row.remarks.slice(urgent ? 1 : 0).join(" · ");
    setText(this.rest, (urgent && rest ? " · " : "") + rest);
    if (this.remarks.title !== (row.tooltip ?? "")) this.remarks.title = row.tooltip ?? "";
  }
}

class Table {
  constructor(model, el) {
    this.model = model;
    this.rows = new Map();
    const root = node("div", "regards-nb regards-nb-live", el);
    const head = node("div", "", root);
    head.setAttribute("role", "status");
    head.setAttribute("aria-live", "polite");
    const first = node("div", "rg-head", head);
    this.headline = node("span", "rg-headline", first);
    this.counts = node("span", "rg-counts", first);
    const overall = node("div", "rg-overall rg-running", head);
    overall.setAttribute("aria-live", "off");
    this.bar = bar("rg-all-bar", overall);
    this.bar.ariaLabel = "all orders";
    overall.append(" ");
    this.overall = node("span", "rg-all", overall);
    this.health = node("span", "", node("div", "rg-health", head));
    this.standstill = node("div", "rg-note rg-act", head);
    this.note = node("div", "rg-note", head);
    this.filter = node("input", "rg-filter", root);
    this.filter.type = "search";
    this.filter.placeholder = "filter: words in name, number, status or message";
    this.filter.ariaLabel = "Filter";
    this.filter.value = model.get("only");
    this.filter.addEventListener("input", () => {
      model.set("only", this.filter.value);
      model.save_changes();
    });
    this.table = node("table", "", node("div", "rg-scroll", root));
    this.table.setAttribute("aria-label", "REGARDS orders");
    const titles = node("tr", "", node("thead", "", this.table));
    for (const name of ["Order", "Parts", "Status", "Details"]) {
      const title = node("th", "", titles);
      title.scope = "col";
      title.textContent = name;
    }
    this.body = node("tbody", "", this.table);
    this.more = node("div", "rg-more", root);
    this.problems = node("div", "rg-problem rg-incomplete", root);
    const actions = node("div", "rg-actions", root);
    this.choice = node("select", "", actions);
    this.choice.ariaLabel = "Order";
    this.choice.append(new Option("choose an order", ""));
    this.choice.addEventListener("change", () => this.enable());
    this.buttons = BUTTONS.map(([action, words]) => {
      const button = node("button", "", actions);
      button.type = "button";
      button.textContent = words;
      button.addEventListener("click", () =>
        model.send({ action, key: this.choice.value === "" ? null : this.choice.value }),
      );
      return [action, words, button];
    });
    this.answer = node("div", "rg-said", root);
    this.answer.setAttribute("role", "status");
  }

  show() {
    const texts = Object.fromEntries(TEXTS.map((name) => [name, this.model.get(name)]));
    const rows = this.model
      .get("order")
      .map((slot) => this.row(slot))
      .filter((row) => row.key);
    for (const name of ["headline", "overall", "standstill", "note", "more", "answer"]) {
      setText(this[name], texts[name] ?? "");
    }
    this.showCounts(texts.counts ?? []);
    setBar(this.bar, texts.fraction);
    signed(this.health, texts.health_severity ?? "gone", texts.health ?? "");
    setText(this.problems, (texts.problems ?? []).map((words) => `▲ ${words}`).join("\n"));
    this.filter.hidden = !texts.has_filter;
    this.table.hidden = rows.length === 0;
    this.showRows(rows);
    this.offer(rows);
    this.waiting = texts.waiting ?? 0;
    this.enable();
  }

  row(slot) {
    const [parts, fraction, timing, files, fetched] = this.model.get(`progress_${slot}`) ?? [];
    return {
      ...EMPTY,
      ...this.model.get(`name_${slot}`),
      ...this.model.get(`state_${slot}`),
      parts: parts ?? "",
      fraction,
      timing: timing ?? "",
      files: files ?? "",
      fetched,
    };
  }

  showCounts(counts) {
    while (this.counts.children.length > counts.length) this.counts.lastChild.remove();
    while (this.counts.children.length < counts.length) node("span", "", this.counts);
    counts.forEach(([severity, words], index) =>
      signed(this.counts.children[index], severity, words),
    );
  }

  showRows(rows) {
    const keys = new Set(rows.map((row) => row.key));
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) {
        row.element.remove();
        this.rows.delete(key);
      }
    }
    rows.forEach((values, index) => {
      let row = this.rows.get(values.key);
      if (!row) this.rows.set(values.key, (row = new Row()));
      row.show(values);
      const there = this.body.children[index];
      if (there !== row.element) this.body.insertBefore(row.element, there ?? null);
    });
  }

  // Orders are added to the list and keep their key, so that a late click acts on the right one.
  offer(rows) {
    const known = new Map([...this.choice.options].map((option) => [option.value, option]));
    for (const row of rows) {
      const title = `${row.number} ${row.name}`.trim();
      const option = known.get(row.key);
      if (!option) this.choice.append(new Option(title, row.key));
      else if (option.text !== title) option.text = title;
    }
    if (this.choice.options.length === 2 && rows.length === 1) this.choice.value = rows[0].key;
    this.allowed = new Map(rows.map((row) => [row.key, new Set(row.actions)]));
  }

  enable() {
    const chosen = this.choice.value;
    for (const [action, words, button] of this.buttons) {
      const allowed = chosen
        ? (this.allowed.get(chosen)?.has(action) ?? true)
        : [...this.allowed.values()].some((actions) => actions.has(action));
      if (button.disabled === allowed) button.disabled = !allowed;
      const count = action === "download" && this.waiting ? ` (${this.waiting})` : "";
      if (button.textContent !== words + count) button.textContent = words + count;
    }
  }
}

function render({ model, el }) {
  const table = new Table(model, el);
  let due = false;
  const show = () => {
    due = false;
    table.show();
  };
  const changed = () => {
    if (!due) {
      due = true;
      // All changes of one message are drawn together.
      Promise.resolve().then(show);
    }
  };
  const names = [...TEXTS, "order"];
  for (let slot = 0; slot < SLOTS; slot++) {
    names.push(`name_${slot}`, `state_${slot}`, `progress_${slot}`);
  }
  for (const name of names) model.on(`change:${name}`, changed);
  show();
  return () => {
    for (const name of names) model.off(`change:${name}`, changed);
  };
}

export default { render };
