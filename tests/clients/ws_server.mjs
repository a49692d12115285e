// A WebSocket server with ws that prints its port, echoes each message, and serves until its standard input ends.
import { WebSocketServer } from 'ws';

const server = new WebSocketServer({ port: 0, host: '127.0.0.1' }, () => console.log(server.address().port));
server.on('connection', (socket) => {
  socket.on('message', (message, isBinary) => socket.send(message, { binary: isBinary }));
});
process.stdin.on('end', () => process.exit(0)).resume();
