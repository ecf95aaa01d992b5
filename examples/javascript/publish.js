// Publishes one prompt and prints the answer token by token: the official NATS client, JSON, and nothing of InferFlux.
//
//   npm install
//   NATS_URL=... NATS_USER=t-dev NATS_PASSWORD=... node publish.js "Name three rivers."
//
// docs/protocol.md says where the credentials are.

import { randomUUID } from "node:crypto";
import { connect, headers } from "@nats-io/transport-node";

const tenant = process.env.NATS_TENANT ?? "dev";
const model = process.env.MODEL ?? "smollm2";
const text = process.argv[2] ?? "Name three rivers.";

// A request id becomes one subject token: letters, digits, "_" and "-" stay as they are.
const request = randomUUID();

const connection = await connect({
  servers: process.env.NATS_URL,
  user: process.env.NATS_USER,
  pass: process.env.NATS_PASSWORD,
  inboxPrefix: `_INBOX_t-${tenant}`,
});

async function answer() {
  // Subscribe first: frames are sent as soon as there are any.
  const replies = connection.subscribe(`inferflux.reply.t-${tenant}.${request}`);
  await connection.flush();

  const prompt = {
    type: "chat",
    id: request,
    messages: [{ role: "user", content: text }],
    max_tokens: Number(process.env.MAX_TOKENS ?? 48),
  };
  const messageId = headers();
  messageId.set("Nats-Msg-Id", `t-${tenant}.${request}`);
  const accepted = await connection.request(
    `inferflux.infer.${model}.default.${tenant}`,
    JSON.stringify(prompt),
    { timeout: 5000, headers: messageId },
  );
  const receipt = accepted.json();
  if (receipt.error) throw new Error(receipt.error.description);
  if (receipt.duplicate) throw new Error("the message id was taken; try again under another one");

  let numTokens = 0;
  for await (const message of replies) {
    const frame = message.json();
    if (frame.error) throw new Error(`${frame.error.code}: ${frame.error.message}`);
    // What has a smaller index was sent twice.
    if ((frame.index ?? 0) === numTokens) {
      numTokens += frame.num_tokens ?? 0;
      process.stdout.write(frame.text ?? "");
    }
    if (frame.usage) return frame.usage;
  }
  throw new Error("the connection closed before the answer was complete");
}

try {
  const usage = await answer();
  process.stderr.write(`\n[${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out]\n`);
} catch (error) {
  process.stderr.write(`publish: ${error.message}\n`);
  process.exitCode = 1;
} finally {
  await connection.drain();
}
