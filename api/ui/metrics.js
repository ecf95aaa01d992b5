// Samples of a Prometheus exposition, and what is shown of them.

const SAMPLE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const WINDOW = 120;

export class Samples {
  #families = new Map();

  constructor(text) {
    for (const line of text.split("\n")) {
      const match = SAMPLE.exec(line);
      if (!match) continue;
      const labels = {};
      for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) labels[name] = value.replace(/\\(.)/g, "$1");
      if (!this.#families.has(match[1])) this.#families.set(match[1], []);
      this.#families.get(match[1]).push({ labels, value: Number(match[3]) });
    }
  }

  all(name) {
    return this.#families.get(name) ?? [];
  }

  sum(name) {
    return this.all(name).reduce((total, { value }) => total + value, 0);
  }

  max(name) {
    return this.all(name).reduce((most, { value }) => Math.max(most, value), 0);
  }

  // Counts of a histogram over all its labels, by upper bound.
  buckets(name) {
    const counts = new Map();
    for (const { labels, value } of this.all(`${name}_bucket`)) {
      const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
      counts.set(bound, (counts.get(bound) ?? 0) + value);
    }
    return counts;
  }
}

export class Meters {
  #history = [];

  add(samples, at) {
    this.#history.push({ samples, at });
    if (this.#history.length > WINDOW) this.#history.shift();
  }

  tiles() {
    const { samples } = this.#history.at(-1);
    return [
      ["Tokens/s", this.#rate("inferflux_stream_tokens_total", this.#history.length - 1).toFixed(1)],
      ["Streams open", samples.sum("inferflux_streams_open")],
      ["Prompts stored", samples.sum("inferflux_queue_depth")],
      ["First token, median", this.#quantile("inferflux_time_to_first_token_seconds", 0.5)],
      ["First token, 95 %", this.#quantile("inferflux_time_to_first_token_seconds", 0.95)],
      ["Between tokens, 95 %", this.#quantile("inferflux_inter_token_latency_seconds", 0.95)],
      ["KV pages in use", `${Math.round(100 * samples.max("inferflux_kv_cache_usage_perc"))} %`],
      ["Tape", `${Math.round(100 * samples.max("inferflux_tape_fill"))} %`],
      ["Dead letters", samples.max("inferflux_dead_letters")],
      ["Guardrail hits", samples.sum("inferflux_guardrail_blocks_total")],
    ];
  }

  draw(svg, caption) {
    const rates = this.#history.map((_, at) => this.#rate("inferflux_stream_tokens_total", at));
    const most = Math.max(...rates, 1);
    const points = rates.map((rate, at) => `${600 - 5 * (rates.length - 1 - at)},${115 - (110 * rate) / most}`);
    let line = svg.querySelector("polyline");
    if (!line) {
      line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      svg.append(line);
    }
    line.setAttribute("points", points.join(" "));
    caption.textContent = `Tokens per second, the last two minutes; now ${rates.at(-1).toFixed(1)}, at most ${most.toFixed(1)}`;
  }

  // Per second, between this picture and the one before it.
  #rate(name, at) {
    if (at < 1) return 0;
    const [before, now] = [this.#history[at - 1], this.#history[at]];
    return Math.max(0, now.samples.sum(name) - before.samples.sum(name)) / Math.max(now.at - before.at, 0.001);
  }

  // Of what ended within the window, as the upper bound of its bucket.
  #quantile(name, share) {
    const before = this.#history[0].samples.buckets(name);
    const counts = [...this.#history.at(-1).samples.buckets(name)].sort(([a], [b]) => a - b)
      .map(([bound, count]) => [bound, count - (this.#history.length > 1 ? before.get(bound) ?? 0 : 0)]);
    const total = counts.at(-1)?.[1] ?? 0;
    if (!total) return "none";
    const [bound] = counts.find(([, count]) => count >= share * total);
    if (!Number.isFinite(bound)) return "very long";
    return bound < 1 ? `≤ ${Math.round(1000 * bound)} ms` : `≤ ${bound} s`;
  }
}
