// The official Anthropic client for Node against `consort serve` with the bundled model. Run by run.sh.
import Anthropic from "@anthropic-ai/sdk";
import { jsonSchemaOutputFormat } from "@anthropic-ai/sdk/helpers/json-schema";
import { base, check, key, picture, refused, run } from "./node.mjs";

const client = new Anthropic({ baseURL: base, apiKey: key, maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const ask = (content, more = {}) => ({
  model: "etude",
  max_tokens: 400,
  messages: user(content),
  temperature: 0,
  thinking: { type: "disabled" },
  ...more,
});
const message = (content, more) => client.messages.create(ask(content, more));
const text = (reply) => reply.content.filter((block) => block.type === "text").map((block) => block.text).join("");
const FOX = "Tell me a story about a fox.";

const tool = {
  name: "move",
  input_schema: {
    type: "object",
    properties: { shape: { enum: ["circle", "square"] }, steps: { type: "integer", minimum: 0, maximum: 9 } },
    required: ["shape", "steps"],
    additionalProperties: false,
  },
};
const valid = (value) =>
  ["circle", "square"].includes(value.shape) && value.steps >= 0 && value.steps <= 9 && Object.keys(value).length === 2;

async function models() {
  const names = [];
  for await (const model of client.models.list({ limit: 3 })) names.push(model.id);
  check(names[0] === "etude" && names.includes("ben") && names.length === 6, names);
  check((await client.models.retrieve("ben")).type === "model");
}

async function whole() {
  const reply = await message("Hello!");
  check(text(reply).startsWith("Hello") && reply.stop_reason === "end_turn", reply);
  check(reply._request_id.startsWith("req_"), reply);
  check(text(await message(FOX, { model: "ben" })).startsWith("Arr"));
  const stopped = await message(FOX, { stop_sequences: ["fox"] });
  check(stopped.stop_reason === "stop_sequence" && stopped.stop_sequence === "fox", stopped);
  const counted = await client.messages.countTokens({ model: "etude", messages: user("Hello!"), thinking: { type: "disabled" } });
  check(counted.input_tokens === reply.usage.input_tokens + reply.usage.cache_read_input_tokens, counted);
}

async function streamed() {
  const expected = text(await message(FOX));
  const stream = client.messages.stream(ask(FOX));
  let said = "";
  stream.on("text", (piece) => (said += piece));
  const final = await stream.finalMessage();
  check(said === expected && text(final) === expected && final.stop_reason === "end_turn", said);
  const kinds = [];
  for await (const event of await message("Hello!", { stream: true })) kinds.push(event.type);
  check(kinds[0] === "message_start" && kinds.at(-1) === "message_stop" && kinds.includes("content_block_delta"), kinds);
  // A client that goes away in the middle.
  for await (const _ of await message(FOX, { stream: true })) break;
}

async function thinking() {
  const reply = await message("What colour is the sky?", { thinking: { type: "adaptive" } });
  check(reply.content[0].type === "thinking" && reply.content[0].thinking && text(reply), reply);
  const final = await client.messages.stream(ask("What colour is the sky?", { thinking: { type: "adaptive" } })).finalMessage();
  check(final.content[0].thinking === reply.content[0].thinking && final.content[0].signature && text(final) === text(reply), final);
  const messages = [...user("What colour is the sky?"), { role: "assistant", content: final.content }, ...user("Hello!")];
  check((await message("", { messages })).content.length);
}

async function tools() {
  const choice = { type: "any", disable_parallel_tool_use: true };
  const reply = await message("Move the circle.", { tools: [tool], tool_choice: choice });
  const [call] = reply.content;
  check(call.type === "tool_use" && valid(call.input) && reply.stop_reason === "tool_use", reply);
  const result = { type: "tool_result", tool_use_id: call.id, content: "done" };
  const messages = [...user("Move the circle."), { role: "assistant", content: reply.content }, ...user([result])];
  const answer = await message("", { messages, tools: [tool], tool_choice: { type: "none" }, max_tokens: 20 });
  check(answer.content.length && answer.content.every((block) => block.type === "text"), answer);
  const final = await client.messages.stream(ask("Move the circle.", { tools: [tool], tool_choice: choice })).finalMessage();
  check(valid(final.content[0].input), final);
}

async function pictures() {
  const content = [
    { type: "image", source: { type: "base64", media_type: "image/png", data: picture } },
    { type: "text", text: "What do you see?" },
  ];
  check(text(await message(content)).includes("red circle"));
}

async function structured() {
  const format = jsonSchemaOutputFormat({
    type: "object",
    properties: { colour: { type: "string", enum: ["red", "green"] }, round: { type: "boolean" } },
    required: ["colour", "round"],
    additionalProperties: false,
  });
  for (let seed = 0; seed < 10; seed += 1) {
    const reply = await client.messages.parse(ask("What colour is it?", { temperature: 1, seed, output_config: { format } }));
    const value = reply.parsed_output;
    check(["red", "green"].includes(value.colour) && typeof value.round === "boolean", reply);
  }
}

async function errors() {
  const like = (type, named) => (error) =>
    error.error.error.type === type && error.error.error.message.includes(named) && error.requestID === error.error.request_id;
  await refused(Anthropic.NotFoundError, like("not_found_error", "nobody"), () => message("x", { model: "nobody" }));
  await refused(Anthropic.BadRequestError, like("invalid_request_error", "temprature"), () => message("x", { temprature: 1 }));
  await refused(Anthropic.BadRequestError, like("invalid_request_error", "top_p"), () => message("x", { top_p: 2 }));
  const picture = [{ type: "image", source: { type: "url", url: "https://example.org/cat.png" } }];
  await refused(Anthropic.BadRequestError, like("invalid_request_error", "messages[0].content[0].source.url"), () => message(picture));
  const stranger = new Anthropic({ baseURL: base, apiKey: "another-key", maxRetries: 0 });
  await refused(Anthropic.AuthenticationError, like("authentication_error", "key"), () => stranger.models.list());
}

await run("anthropic", [models, whole, streamed, thinking, tools, pictures, structured, errors]);
