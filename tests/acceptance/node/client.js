// Assemble, watch, broadcast and disband a crew with @grpc/grpc-js and the proto files, as client.json says.
// Prints one JSON document. Usage: node client.js CLIENT_JSON PROTO_DIR THIRD_PARTY_DIR
"use strict";
const fs = require("fs");
const crypto = require("crypto");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [clientFile, protoDir, thirdParty] = process.argv.slice(2);
const told = JSON.parse(fs.readFileSync(clientFile, "utf8"));
const definition = loader.loadSync(["hyperfactory/v1/crew_service.proto", "hyperfactory/v1/factory_service.proto"], {
  includeDirs: [protoDir, thirdParty],
  keepCase: false,
  longs: String,
  enums: String,
  oneofs: true,
  arrays: true,
});
const api = grpc.loadPackageDefinition(definition).hyperfactory.v1;
const credentials = grpc.credentials.createSsl(
  fs.readFileSync(told.ca),
  fs.readFileSync(told.key),
  fs.readFileSync(told.cert),
);
const options = {
  "grpc.ssl_target_name_override": told.authority,
  "grpc.default_authority": told.authority,
};
const crews = new api.CrewService(told.endpoint, credentials, options);
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${fs.readFileSync(told.token, "utf8").trim()}`);
const within = () => ({ deadline: new Date(Date.now() + 60000) });

const unary = (method, request) =>
  new Promise((resolve, reject) =>
    crews[method](request, metadata, within(), (error, response) => (error ? reject(error) : resolve(response))),
  );

const collect = (method, request, enough) =>
  new Promise((resolve, reject) => {
    const seen = [];
    const stream = crews[method](request, metadata, within());
    stream.on("data", (response) => {
      seen.push(response);
      if (enough && enough(seen)) {
        stream.cancel();
        resolve(seen);
      }
    });
    stream.on("error", (error) => (error.code === grpc.status.CANCELLED ? resolve(seen) : reject(error)));
    stream.on("end", () => resolve(seen));
  });

async function main() {
  const manifest = {
    name: "from-node",
    members: [
      { name: "planner", profile: "planner" },
      { name: "coder", profile: "coder", replicas: 2 },
    ],
    labels: { language: "javascript" },
  };
  const assembled = await unary("assembleCrew", { requestId: crypto.randomUUID(), manifest });
  const crew = assembled.crew;
  const receipts = (
    await collect("broadcast", { requestId: crypto.randomUUID(), crew: crew.id, signal: "MISSION_START" })
  ).flatMap((response) => response.receipts);
  const watched = await collect("watchCrew", { crew: crew.id }, (seen) =>
    seen.flatMap((r) => r.events).some((e) => e.payload === "receipt"),
  );
  let refusal = null;
  try {
    await unary("assembleCrew", { requestId: "no uuid", manifest: { name: "*" } });
  } catch (error) {
    refusal = { code: error.code, hasDetails: error.metadata.get("grpc-status-details-bin").length > 0 };
  }
  const disbanded = await unary("disbandCrew", { requestId: crypto.randomUUID(), crew: crew.id });
  process.stdout.write(
    JSON.stringify({
      state: crew.state,
      agents: crew.agents.map((agent) => agent.name).sort(),
      receipts: receipts.map((receipt) => receipt.stage),
      sequences: watched.flatMap((r) => r.events).map((event) => Number(event.sequence)),
      refusal,
      end: disbanded.crew.state,
    }) + "\n",
  );
  crews.close();
}

main().catch((error) => {
  process.stderr.write(`${error.stack || error}\n`);
  process.exit(1);
});
