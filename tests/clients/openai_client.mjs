// The official OpenAI client for Node against `consort serve` with the bundled model. Run by run.sh.
import OpenAI from "openai";
import { base, check, isRemote, key, notByVllm, picture, refused, run } from "./node.mjs";

const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: key, maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const ask = (content, more = {}) => ({
  model: "etude",
  messages: user(content),
  temperature: 0,
  reasoning_effort: "none",
  ...more,
});
const chat = (content, more) => client.chat.completions.create(ask(content, more));
const respond = (input, more = {}) => ({ model: "etude", input, temperature: 0, reasoning: { effort: "none" }, ...more });
const FOX = "Tell me a story about a fox.";

const schema = {
  type: "object",
  properties: { shape: { enum: ["circle", "square"] }, steps: { type: "integer", minimum: 0, maximum: 9 } },
  required: ["shape", "steps"],
  additionalProperties: false,
};
const valid = (value) =>
  ["circle", "square"].includes(value.shape) && value.steps >= 0 && value.steps <= 9 && Object.keys(value).length === 2;

async function models() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  check(names[0] === "etude" && names.includes("ben"), names);
  check((await client.models.retrieve("ben")).owned_by === "consort");
}

async function whole() {
  const reply = await chat("Hello!");
  check(reply.choices[0].message.content.startsWith("Hello") && reply.choices[0].finish_reason === "stop", reply);
  check(reply._request_id.startsWith("req_"), reply);
  check((await chat(FOX, { model: "ben" })).choices[0].message.content.startsWith("Arr"));
  const thinking = await chat("What colour is the sky?", { reasoning_effort: "high" });
  check(thinking.choices[0].message.reasoning_content && thinking.usage.completion_tokens_details.reasoning_tokens > 0, thinking);
}

async function streamed() {
  const expected = (await chat(FOX)).choices[0].message.content;
  let text = "";
  let usage = null;
  for await (const chunk of await chat(FOX, { stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  check(text === expected && usage.completion_tokens > 3, text);
  const stream = client.chat.completions.stream(ask(FOX));
  check((await stream.finalContent()) === expected);
  // A client that goes away in the middle.
  const begun = await chat(FOX, { stream: true, ignore_eos: true });
  for await (const _ of begun) break;
}

async function tools() {
  const tool = { type: "function", function: { name: "move", parameters: schema } };
  const reply = await chat("Move the circle.", { tools: [tool], tool_choice: "required", parallel_tool_calls: false });
  const { message } = reply.choices[0];
  const [call] = message.tool_calls;
  check(call.function.name === "move" && valid(JSON.parse(call.function.arguments)), call);
  const messages = [...user("Move the circle."), message, { role: "tool", tool_call_id: call.id, content: "done" }];
  const answer = await chat("", { messages, tools: [tool], tool_choice: "none", max_tokens: 20 });
  check(answer.choices[0].message.content && !answer.choices[0].message.tool_calls, answer);
  const stream = client.chat.completions.stream(
    ask("Move the circle.", { tools: [tool], tool_choice: { type: "function", function: { name: "move" } }, parallel_tool_calls: false }),
  );
  const final = await stream.finalMessage();
  check(valid(JSON.parse(final.tool_calls[0].function.arguments)), final);
}

async function pictures() {
  const content = [
    { type: "image_url", image_url: { url: `data:image/png;base64,${picture}` } },
    { type: "text", text: "What do you see?" },
  ];
  check((await chat(content)).choices[0].message.content.includes("red circle"));
}

async function structured() {
  const format = { type: "json_schema", json_schema: { name: "shape", strict: true, schema } };
  for (let seed = 0; seed < 10; seed += 1) {
    const reply = await client.chat.completions.parse(ask("Hello!", { temperature: 1, seed, response_format: format }));
    check(valid(JSON.parse(reply.choices[0].message.content)), reply);
  }
}

async function texts() {
  const echo = { model: "etude", prompt: "Good day", max_tokens: 4, echo: true, temperature: 0 };
  if (isRemote) {
    check((await client.completions.create(echo)).choices[0].text.startsWith("Good day"));
    await notByVllm("log probabilities of a prompt, with adapters", () => client.completions.create({ ...echo, logprobs: 1 }));
    await notByVllm("embeddings of texts", () => client.embeddings.create({ model: "etude", input: "a fox" }));
    return;
  }
  const reply = await client.completions.create({ ...echo, logprobs: 1 });
  check(reply.choices[0].text.startsWith("Good day") && reply.choices[0].logprobs.token_logprobs[0] === null, reply);
  // The client asks for base64 of its own accord.
  const encoded = (await client.embeddings.create({ model: "etude", input: "a red circle" })).data[0].embedding;
  const plain = (await client.embeddings.create({ model: "etude", input: "a red circle", encoding_format: "float" })).data[0].embedding;
  check(encoded.length === plain.length && encoded.every((value, at) => Math.abs(value - plain[at]) < 1e-6));
}

async function responses() {
  const reply = await client.responses.create(respond(FOX));
  check(reply.output_text === (await chat(FOX)).choices[0].message.content && reply.status === "completed", reply);
  let text = "";
  let numbers = 0;
  let last = null;
  for await (const event of await client.responses.create(respond(FOX, { stream: true }))) {
    check(event.sequence_number === numbers, event);
    numbers += 1;
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  check(text === reply.output_text && last.type === "response.completed", last);
  const final = await client.responses.stream(respond("What colour is the sky?", { reasoning: { effort: "low" } })).finalResponse();
  check(final.output[0].type === "reasoning" && final.output[0].content[0].text && final.output_text, final);
  const tool = { type: "function", name: "move", parameters: schema, strict: true };
  const called = await client.responses.create(respond("Move the circle.", { tools: [tool], tool_choice: "required", parallel_tool_calls: false }));
  const call = called.output.at(-1);
  check(call.type === "function_call" && valid(JSON.parse(call.arguments)), called);
  const input = [...user("Move the circle."), ...called.output, { type: "function_call_output", call_id: call.call_id, output: "done" }];
  check((await client.responses.create(respond(input, { max_output_tokens: 20 }))).output_text);
  const format = { type: "json_schema", name: "shape", strict: true, schema };
  const parsed = await client.responses.parse(respond("Hello!", { text: { format }, temperature: 1 }));
  check(valid(JSON.parse(parsed.output_text)), parsed);
  const content = [
    { type: "input_image", detail: "auto", image_url: `data:image/png;base64,${picture}` },
    { type: "input_text", text: "What do you see?" },
  ];
  check((await client.responses.create(respond(user(content)))).output_text.includes("red circle"));
}

async function errors() {
  const like = (code, param) => (error) => error.code === code && (error.param ?? null) === param && error.requestID.startsWith("req_");
  await refused(OpenAI.NotFoundError, like("model_not_found", "model"), () => chat("x", { model: "nobody" }));
  await refused(OpenAI.BadRequestError, like("unknown_parameter", "temprature"), () => chat("x", { temprature: 1 }));
  await refused(OpenAI.BadRequestError, like("invalid_value", "top_p"), () => chat("x", { top_p: 2 }));
  await refused(OpenAI.BadRequestError, like("unsupported_parameter", "conversation"), () =>
    client.responses.create(respond("x", { conversation: "conv_1" })));
  const content = [{ type: "image_url", image_url: { url: "https://example.org/cat.png" } }];
  await refused(OpenAI.BadRequestError, like("remote_image", "messages[0].content[0].image_url.url"), () => chat(content));
  const stranger = new OpenAI({ baseURL: `${base}/v1`, apiKey: "another-key", maxRetries: 0 });
  await refused(OpenAI.AuthenticationError, like("invalid_api_key", null), () => stranger.models.list());
}

await run("openai", [models, whole, streamed, tools, pictures, structured, texts, responses, errors]);
