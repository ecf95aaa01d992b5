// The key of this tab, and calls with it.

const NAME = "inferflux-key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Session {
  #key = sessionStorage.getItem(NAME);

  get known() {
    return this.#key !== null;
  }

  remember(key) {
    this.#key = key;
    sessionStorage.setItem(NAME, key);
  }

  forget() {
    this.#key = null;
    sessionStorage.removeItem(NAME);
  }

  async call(method, path, body) {
    const response = await this.fetch(method, path, body);
    return response.json();
  }

  // The metrics of the replica that answered, and its name.
  async metrics() {
    const response = await this.fetch("GET", "/v1/admin/metrics");
    return [response.headers.get("x-inferflux-replica"), await response.text()];
  }

  // The response of a call that succeeded. Throws Refused with what the server said.
  async fetch(method, path, body, signal) {
    const headers = { Authorization: `Bearer ${this.#key}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
    if (response.ok) return response;
    const answer = await response.json().catch(() => ({}));
    throw new Refused(response.status, answer.error?.message ?? `HTTP status ${response.status}`);
  }
}
