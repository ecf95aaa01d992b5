// Samples of a Prometheus exposition, and what is shown of them.

const SAMPLE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const WINDOW_S = 120;
// A replica that answered longer ago than this may be gone.
const RECENT_S = 15;

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

// Behind a proxy any replica may answer: what each of them counts is compared with what it counted itself.
export class Meters {
  #pictures = new Map();
  #rates = [];

  add(replica, samples, at) {
    if (!this.#pictures.has(replica)) this.#pictures.set(replica, []);
    this.#pictures.get(replica).push({ samples, at });
    for (const [name, kept] of this.#pictures) {
      while (kept.length && at - kept[0].at > WINDOW_S) kept.shift();
      if (!kept.length) this.#pictures.delete(name);
    }
    // Heartbeats say this, so every replica knows it of the whole fleet.
    this.#rates.push({ rate: samples.sum("inferflux_worker_tokens_per_second"), at });
    while (at - this.#rates[0].at > WINDOW_S) this.#rates.shift();
  }

  tiles() {
    const replicas = this.#recent();
    const samples = replicas[0];
    const total = (name) => replicas.reduce((sum, each) => sum + each.sum(name), 0);
    return [
      ["Tokens/s", this.#rates.at(-1).rate.toFixed(1)],
      ["Streams open", total("inferflux_streams_open")],
      ["Prompts stored", samples.sum("inferflux_queue_depth")],
      ["First token, median", this.#quantile("inferflux_time_to_first_token_seconds", 0.5)],
      ["First token, 95 %", this.#quantile("inferflux_time_to_first_token_seconds", 0.95)],
      ["Between tokens, 95 %", this.#quantile("inferflux_inter_token_latency_seconds", 0.95)],
      ["KV pages in use", `${Math.round(100 * samples.max("inferflux_kv_cache_usage_perc"))} %`],
      ["Tape", `${Math.round(100 * samples.max("inferflux_tape_fill"))} %`],
      ["Dead letters", samples.max("inferflux_dead_letters")],
      ["Guardrail hits", total("inferflux_guardrail_blocks_total")],
    ];
  }

  // What guardrails found, over replicas: [labels, count].
  hits() {
    const found = new Map();
    for (const { labels, value } of this.#recent().flatMap((each) => each.all("inferflux_guardrail_blocks_total"))) {
      const key = `${labels.guardrail} ${labels.stage} ${labels.action}`;
      found.set(key, [labels, (found.get(key)?.[1] ?? 0) + value]);
    }
    return [...found.values()];
  }

  draw(svg, caption) {
    const now = this.#rates.at(-1);
    const most = Math.max(...this.#rates.map(({ rate }) => rate));
    const scale = Math.max(most, 1);
    const points = this.#rates.map(({ rate, at }) => `${600 - 5 * (now.at - at)},${115 - (110 * rate) / scale}`);
    let line = svg.querySelector("polyline");
    if (!line) {
      line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      svg.append(line);
    }
    line.setAttribute("points", points.join(" "));
    caption.textContent = `Tokens per second, the last two minutes; now ${now.rate.toFixed(1)}, at most ${most.toFixed(1)}`;
  }

  // The last samples of each replica that has answered lately, the newest first.
  #recent() {
    const last = [...this.#pictures.values()].map((kept) => kept.at(-1)).sort((a, b) => b.at - a.at);
    return last.filter(({ at }) => last[0].at - at <= RECENT_S).map(({ samples }) => samples);
  }

  // Of what ended within the window, as the upper bound of its bucket.
  #quantile(name, share) {
    const counts = new Map();
    for (const kept of this.#pictures.values()) {
      const before = kept.length > 1 ? kept[0].samples.buckets(name) : new Map();
      for (const [bound, count] of kept.at(-1).samples.buckets(name))
        counts.set(bound, (counts.get(bound) ?? 0) + count - (before.get(bound) ?? 0));
    }
    const sorted = [...counts].sort(([a], [b]) => a - b);
    const total = sorted.at(-1)?.[1] ?? 0;
    if (!total) return "none";
    const [bound] = sorted.find(([, count]) => count >= share * total);
    if (!Number.isFinite(bound)) return "very long";
    return bound < 1 ? `≤ ${Math.round(1000 * bound)} ms` : `≤ ${bound} s`;
  }
}
