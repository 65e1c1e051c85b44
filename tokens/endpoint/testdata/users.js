// A user service in the style of the demo. It answers every login with 401. X-Read has the user names
// that several common ways of parsing the body find: base64 of a JSON list. It prints its port and
// exits when its standard input closes.
const http = require("node:http");
const querystring = require("node:querystring");

const ways = [
  (text) => JSON.parse(text).username,
  (text) => JSON.parse(text.replace(/^\ufeff/, "")).username, // as body-parser does
  (text) => Object.assign({}, JSON.parse(text)).username,
  (text) => new URLSearchParams(text).get("username"),
  (text) => new URLSearchParams(text).getAll("username").at(-1),
  (text) => querystring.parse(text).username,
  (text) => querystring.parse(text.replaceAll(";", "&")).username, // ; was a separator too
  (text) => querystring.parse(text)["username[]"],
  (text, type) => type.includes("form") && JSON.parse(Object.keys(querystring.parse(text))[0]).username, // JSON sent as a form
];

function read(way, text, type) {
  try {
    const name = way(text, type);
    return name === undefined || name === null || name === false ? "" : String(name);
  } catch {
    return ""; // it would answer 400
  }
}

const server = http.createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const text = Buffer.concat(parts).toString("utf8");
    const names = ways.map((way) => read(way, text, request.headers["content-type"] ?? ""));
    response.writeHead(401, { "X-Read": Buffer.from(JSON.stringify(names)).toString("base64") });
    response.end();
  });
});
server.keepAliveTimeout = 0; // keeps connections until the gateway closes them
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.on("end", () => process.exit()).resume();
