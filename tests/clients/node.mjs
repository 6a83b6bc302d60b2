// What both scripts for Node share: the server, counted checks, the demo picture.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

export const base = process.argv[2];
export const root = process.argv[3];
export const key = process.env.CONSORT_API_KEY;
/** Whether a vLLM computes the model. */
export const isRemote = process.env.CONSORT_REMOTE === "vllm";
export const picture = readFileSync(`${root}/models/etude/demo.png`).toString("base64");

let checks = 0;
export function check(holds, what) {
  checks += 1;
  assert.ok(holds, typeof what === "string" ? what : JSON.stringify(what));
}

/** Expects a call to fail with a class of error, of which `holds` is true. */
export async function refused(kind, holds, call) {
  try {
    await call();
  } catch (error) {
    check(error instanceof kind && holds(error), `${error.name}: ${error.message}`);
    return;
  }
  assert.fail(`no ${kind.name} was thrown`);
}

/** Expects a call to be refused by name, as what vLLM does not do is. */
export async function notByVllm(what, call) {
  await refused(Error, (error) => error.status === 400 && error.message.includes("does not support"), call);
  console.log(`not by vLLM, and refused: ${what}`);
}

export async function run(name, parts) {
  for (const part of parts) await part();
  console.log(`${name} for Node ${process.version}: ${checks} checks passed`);
}
