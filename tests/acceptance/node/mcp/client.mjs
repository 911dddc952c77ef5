// List and call a whole crew's tools with the official MCP client: node client.mjs URL MODE TOOL ARGUMENTS
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const [url, mode, tool, args] = process.argv.slice(2);
const client = new Client(
  { name: "node-acceptance", version: "1" },
  { versionNegotiation: { mode } },
);
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
const { tools } = await client.listTools();
const called = await client.callTool({ name: tool, arguments: JSON.parse(args) });
let refused = "";
try {
  await client.callTool({ name: "nobody__nothing", arguments: {} });
} catch (error) {
  refused = String(error.code ?? error.message);
}
console.log(JSON.stringify({ tools: tools.map((t) => t.name), called, refused }));
await client.close();
