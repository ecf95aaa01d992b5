// One chat at a time, streamed.

export async function ask(session, { model, text, maxTokens, answer, about, send, stop }) {
  const abort = new AbortController();
  const begin = performance.now();
  let first = null;
  let count = 0;
  send.disabled = true;
  stop.disabled = false;
  stop.onclick = () => abort.abort();
  answer.textContent = "";
  about.textContent = "Waiting for the first token.";
  try {
    const body = { model, messages: [{ role: "user", content: text }], max_tokens: maxTokens, stream: true };
    const response = await session.fetch("POST", "/v1/chat/completions", body, abort.signal);
    for await (const data of events(response.body)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const piece = chunk.choices[0]?.delta?.content;
      if (!piece) continue;
      if (first === null) {
        first = performance.now();
        about.textContent = "The answer is coming.";
      }
      count += 1;
      answer.append(piece);
    }
    const seconds = (performance.now() - begin) / 1000;
    const waited = first === null ? "no token" : `first token after ${Math.round(first - begin)} ms`;
    about.textContent = `${count} tokens in ${seconds.toFixed(1)} s, ${waited}.`;
  } catch (error) {
    about.textContent = error.name === "AbortError" ? `Stopped after ${count} tokens.` : `Failed: ${error.message}`;
  } finally {
    send.disabled = false;
    stop.disabled = true;
  }
}

async function* events(stream) {
  let rest = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).replace(/\r$/, "");
  }
}
