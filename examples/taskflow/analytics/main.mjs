// Counts users and tasks by day: a participant in JavaScript that only listens.
//
//   AMQP_URL=amqp://analytics:...@localhost/ DATA_DIR=data node start.mjs
//
// It publishes nothing, so of what docs/other-languages.md of the engine asks for, it has to keep
// the inbox. What it knows is a journal of one line for each event; the figures are its sum, and
// are written beside it for people. Events come in any order, and may come again.

import { fsyncSync, openSync, readFileSync, renameSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import amqp from "amqplib";
import { HTTP } from "cloudevents";

const NAME = "analytics";
const JOURNAL = `${process.env.DATA_DIR}/${NAME}.journal`;
const FIGURES = `${process.env.DATA_DIR}/${NAME}.json`;
const CONTENT_TYPE = "application/cloudevents+json";
const COUNTED = ["user.registered", "task.created", "task.completed", "task.withdrawn"];
const SOON_MS = 200; // figures are written so long after an event

class Journal {
  done = new Set(); // the inbox, by source and id
  days = {}; // by day and type of event, how many

  constructor(path) {
    this.file = openSync(path, "a+");
    const text = readFileSync(path, "utf8");
    const whole = text.slice(0, text.lastIndexOf("\n") + 1); // A line cut short was never committed.
    truncateSync(path, Buffer.byteLength(whole));
    whole.split("\n").filter(Boolean).forEach((line) => this.take(JSON.parse(line)));
  }

  commit(entry) {
    writeSync(this.file, `${JSON.stringify(entry)}\n`);
    fsyncSync(this.file);
    this.take(entry);
  }

  take({ key, day, type }) {
    this.done.add(key);
    this.days[day] ??= {};
    this.days[day][type] = (this.days[day][type] ?? 0) + 1;
  }
}

function handle(channel, journal, message) {
  let event;
  try {
    event = HTTP.toEvent({ headers: { "content-type": CONTENT_TYPE }, body: message.content.toString() });
    if (!COUNTED.includes(event.type)) throw new Error(`nothing here counts ${event.type}`);
  } catch (error) {
    console.error(`cannot read a message: ${error.message}`);
    return channel.nack(message, false, false); // The broker puts it among the dead letters.
  }
  const key = `${event.source}\t${event.id}`;
  if (!journal.done.has(key)) {
    journal.commit({ key, day: event.time.slice(0, 10), type: event.type });
    writeSoon(journal);
  }
  channel.ack(message);
}

let writing = null;
function writeSoon(journal) {
  writing ??= setTimeout(() => {
    writing = null;
    writeFigures(journal);
  }, SOON_MS);
}

function writeFigures(journal) {
  writeFileSync(`${FIGURES}.new`, `${JSON.stringify(journal.days, null, 2)}\n`);
  renameSync(`${FIGURES}.new`, FIGURES);
}

const journal = new Journal(JOURNAL);
writeFigures(journal); // The last run may have ended before it did.
const connection = await amqp.connect(process.env.AMQP_URL, {
  clientProperties: { connection_name: NAME },
});
const channel = await connection.createChannel();
for (const each of [connection, channel]) {
  each.on("error", (error) => console.error(error.message));
  each.on("close", () => process.exit(1)); // Its supervisor starts it again.
}
process.once("SIGTERM", () => process.exit(0)); // What is not acknowledged comes again.
await channel.prefetch(100);
for (const queue of [`${NAME}.high`, `${NAME}.normal`]) {
  await channel.consume(queue, (message) => {
    if (message === null) process.exit(1); // The broker has cancelled the consumer.
    handle(channel, journal, message);
  });
}
console.log("ready");
