// Sends requests with undici in HTTP/1.1 and in HTTP/2 over TLS, and opens a WebSocket.
// Arguments: plain address, TLS address, CA file, host name for TLS, address of the sidecar of the WebSocket server.
import assert from 'node:assert';
import { readFileSync } from 'node:fs';
import { Agent, WebSocket, request } from 'undici';

const [plain, secure, caFile, name, socketAddress] = process.argv.slice(2);

async function use(base, dispatcher) {
  const hello = await request(`${base}/hello`, { dispatcher });
  assert.equal(hello.statusCode, 200);
  assert.equal(await hello.body.text(), 'GET /hello ');
  const body = 'x'.repeat(300_000);
  const echo = await request(`${base}/echo`, { dispatcher, method: 'POST', body });
  assert.equal(await echo.body.text(), `POST /echo ${body}`);
  const many = await Promise.all(Array.from({ length: 100 }, async (_, number) => (await request(`${base}/${number}`, { dispatcher })).body.text()));
  many.forEach((text, number) => assert.equal(text, `GET /${number} `));
  await dispatcher.close();
}

await use(`http://${plain}`, new Agent({ connections: 8, pipelining: 4 }));
const port = secure.split(':').pop();
const connect = { ca: readFileSync(caFile), servername: name };
await use(`https://127.0.0.1:${port}`, new Agent({ connect, allowH2: false }));
await use(`https://127.0.0.1:${port}`, new Agent({ connect, allowH2: true }));

const socket = new WebSocket(`ws://${socketAddress}/talk`);
socket.binaryType = 'arraybuffer';
const received = [];
await new Promise((done, failed) => {
  socket.onerror = (event) => failed(event.error ?? new Error('the socket failed'));
  socket.onopen = () => { socket.send('one'); socket.send(new Uint8Array(200_000)); socket.send('three'); };
  socket.onmessage = ({ data }) => { received.push(data); if (received.length === 3) { socket.close(1000); } };
  socket.onclose = ({ code }) => { assert.equal(code, 1000); done(); };
});
assert.equal(received[0], 'one');
assert.equal(received[1].byteLength, 200_000);
assert.equal(received[2], 'three');
console.log('fine');
