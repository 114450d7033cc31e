// The server's interface: JSON, and streams of server-sent events.

/** An answer of the server that is an error. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The response to a request; `body` is sent as JSON. Throws Refused. */
async function ask(path, { key, body, signal }) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  const options = { headers, signal, method: body ? "POST" : "GET" };
  const response = await fetch(path, { ...options, body: body && JSON.stringify(body) });
  if (response.ok) return response;
  const content = await response.json().catch(() => null);
  throw new Refused(response.status, content?.error?.message ?? `status ${response.status}`);
}

/** The JSON of a path. */
export async function get(path, key) {
  return (await ask(path, { key })).json();
}

/** The text of an answer, as it arrives. The generator returns why it ended. Throws Refused. */
export async function* answer(body, key, signal) {
  const streamed = { ...body, stream: true };
  const response = await ask("/v1/chat/completions", { key, signal, body: streamed });
  let finish = null;
  for await (const event of events(response.body)) {
    if (event.error) throw new Refused(500, event.error.message);
    for (const choice of event.choices) {
      finish = choice.finish_reason ?? finish;
      if (choice.delta.content) yield choice.delta.content;
    }
  }
  return finish;
}

/** The reward model's score of an answer to a prompt. */
export async function score(prompt, text, ended, key, signal) {
  const messages = [
    { role: "user", content: prompt },
    { role: "assistant", content: text },
  ];
  const response = await ask("/v1/score", { key, signal, body: { messages, ended: [ended] } });
  return (await response.json()).rewards[0];
}

/** The events of a stream, up to its end mark. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
