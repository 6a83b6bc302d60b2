// `npm run mock`: the page with scripted personas, to work at it without a model. `npm run mock -- 8099 [key]`.

import { argv } from "node:process";
import { Mock } from "./server.mjs";

const mock = new Mock({ key: argv[3] ?? "" });
console.log(`the page, with scripted replies, is at ${await mock.listen(Number(argv[2] ?? 8099))}`);
