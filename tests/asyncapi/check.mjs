// Reads an AsyncAPI document from standard input; prints what the official parser says is wrong with it.
import { Parser } from "@asyncapi/parser";
import { readFileSync } from "node:fs";
const { document, diagnostics } = await new Parser().parse(readFileSync(0, "utf8"));
const errors = diagnostics.filter((diagnostic) => diagnostic.severity === 0);
for (const { code, message, path } of errors) console.log(`${code} ${path.join("/")}: ${message}`);
process.exit(document === undefined || errors.length > 0 ? 1 : 0);
