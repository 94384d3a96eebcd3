// Prints labels for parcels: a participant in JavaScript, as `docs/other-languages.md` asks for it.
//
//   AMQP_URL=amqp://label:...@localhost/ DATA_DIR=data node main.mjs
//
// What it keeps is a journal of one line for each transaction. Tests hold it up or jam its printer
// by files beside the journal: see `hold` and `printLabel`.

import { createHash } from "node:crypto";
import { existsSync, fsyncSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";
import amqp from "amqplib";
import { CloudEvent, HTTP } from "cloudevents";

const NAME = "label";
const SOURCE = `/services/${NAME}`;
const QUEUES = ["label.high", "label.normal", "label.intake.high", "label.intake.normal"];
const CONTENT_TYPE = "application/cloudevents+json";
const JOURNAL = `${process.env.DATA_DIR}/label.journal`;
const MAX_CALLS = 2;
const WAIT_MS = 100; // one of the delays that there are on the broker
const HEAVY_GRAMS = 30_000;

// --- what it decides: pure ---------------------------------------------------------------------

class PrinterJam extends Error {} // may be gone next time

function printLabel(event, state) {
  if (state.printed || state.refused || state.voided) return [];
  if (event.data.grams > HEAVY_GRAMS) return [["label.refused", { parcel: event.subject }]];
  if (existsSync(`${JOURNAL}.jam`)) throw new PrinterJam("no paper");
  return [["label.printed", { parcel: event.subject, number: `L-${event.subject}` }]];
}

function voidLabel(event, state) {
  return state.voided ? [] : [["label.voided", { parcel: event.subject }]];
}

const REACTIONS = {
  "parcel.packed": { name: "print_label", react: printLabel },
  "label.void": { name: "void_label", react: voidLabel, isCommand: true },
};

// --- what it keeps: the inbox, the outbox and its states, written together ---------------------

class Journal {
  done = new Set(); // the inbox, by source and id
  unpublished = new Map(); // the outbox, by id
  states = new Map(); // by subject

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

  take({ done, out = [], published = [] }) {
    if (done) this.done.add(done);
    for (const event of out) {
      this.unpublished.set(event.id, event);
      const state = this.state(event.subject);
      state.sequence = event.sequence;
      state[event.type.split(".")[1]] = true;
      this.states.set(event.subject, state);
    }
    published.forEach((id) => this.unpublished.delete(id));
  }

  state(subject) {
    return { sequence: 0, ...this.states.get(subject) };
  }
}

// --- how it speaks -------------------------------------------------------------------------------

/** The same id each time a step is done again: a UUID of version 5 (RFC 9562). */
function derivedId(cause, step) {
  const namespace = Buffer.from("6ba7b8129dad11d180b400c04fd430c8", "hex");
  const id = createHash("sha1").update(namespace).update(`${cause}/${step}`).digest().subarray(0, 16);
  id[6] = (id[6] & 0x0f) | 0x50;
  id[8] = (id[8] & 0x3f) | 0x80;
  return id.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

function answerTo(cause, reaction, type, data, sequence, takenat) {
  // A command may come from several senders, each with its own ids.
  const from = reaction.isCommand ? `${cause.id}\t${cause.source}` : cause.id;
  return new CloudEvent({
    id: derivedId(from, `${NAME}.${reaction.name}.${type}`),
    source: SOURCE,
    type,
    subject: cause.subject,
    datacontenttype: "application/json",
    dataschema: `urn:order-saga:${type}:1`,
    correlationid: cause.correlationid,
    causationid: cause.id,
    priority: cause.priority ?? "normal",
    sequence,
    ...(cause.traceparent && { traceparent: cause.traceparent }), // The SDK takes no undefined ones.
    takenat,
    data,
  });
}

const returned = new Set(); // the ids of messages that no queue takes: told before the confirm

/** Publish, and return once the broker has it in every queue. Rejects what no queue takes. */
function publish(channel, exchange, key, body, properties) {
  return new Promise((resolve, reject) => {
    const options = { ...properties, persistent: true, mandatory: true };
    returned.delete(options.messageId);
    channel.publish(exchange, key, body, options, (error) => {
      if (error) reject(error);
      else if (returned.delete(options.messageId)) reject(new Error(`no queue takes ${key}`));
      else resolve();
    });
  });
}
async function publishAll(channel, journal) {
  for (const event of journal.unpublished.values()) {
    const { body } = HTTP.structured(new CloudEvent(event)); // the same bytes each time
    await publish(channel, "saga.events", `${event.type}.${event.priority}`, Buffer.from(body), {
      contentType: CONTENT_TYPE,
      messageId: event.id,
      correlationId: event.correlationid,
      type: event.type,
      appId: SOURCE,
      timestamp: Math.floor(Date.parse(event.time) / 1000),
    });
    journal.commit({ published: [event.id] });
  }
}

/** Wait while a test holds it up at this place. */
async function hold(place) {
  const file = `${JOURNAL}.hold-${place}`;
  if (existsSync(file)) writeFileSync(`${file}.held`, "");
  while (existsSync(file)) await pause(10);
}

// --- one delivery --------------------------------------------------------------------------------

async function handle(channel, journal, queue, message) {
  const takenat = new Date().toISOString();
  let cause;
  try {
    cause = HTTP.toEvent({ headers: { "content-type": CONTENT_TYPE }, body: message.content.toString() });
    if (!(cause.type in REACTIONS)) throw new Error(`nothing here takes ${cause.type}`);
  } catch (error) {
    console.error(`cannot read a message from ${queue}: ${error.message}`);
    return channel.nack(message, false, false); // The broker puts it among the dead letters.
  }
  const key = `${cause.source}\t${cause.id}`;
  if (!journal.done.has(key)) {
    const reaction = REACTIONS[cause.type];
    const state = journal.state(cause.subject);
    let results;
    try {
      results = reaction.react(cause, state);
    } catch (error) {
      return setAside(channel, queue, message, error);
    }
    const out = results.map(([type, data], index) =>
      answerTo(cause, reaction, type, data, state.sequence + index + 1, takenat).toJSON(),
    );
    await hold("before-commit");
    journal.commit({ done: key, out });
    await hold("after-commit");
  }
  await publishAll(channel, journal);
  channel.ack(message);
}

/** Let it wait for the next try, or be a dead letter: a copy that says why, then the ack. */
async function setAside(channel, queue, message, error) {
  const { headers = {}, ...properties } = message.properties;
  const calls = (headers["x-saga-attempts"] ?? 0) + 1;
  const now = new Date().toISOString();
  const again = error instanceof PrinterJam && calls < MAX_CALLS;
  const options = {
    ...properties,
    headers: {
      ...headers,
      "x-saga-reason": "failed",
      "x-saga-error-type": error.constructor.name,
      "x-saga-error": error.message.slice(0, 1000),
      "x-saga-attempts": calls,
      "x-saga-first-failed-at": headers["x-saga-first-failed-at"] ?? now,
      "x-saga-last-failed-at": now,
      "x-saga-origin-queue": queue,
      "x-saga-origin-exchange": headers["x-saga-origin-exchange"] ?? message.fields.exchange,
      "x-saga-origin-routing-key": headers["x-saga-origin-routing-key"] ?? message.fields.routingKey,
    },
  };
  const [exchange, to] = again ? [`saga.retry.${WAIT_MS}`, queue] : ["saga.dead", NAME];
  await publish(channel, exchange, to, message.content, options);
  channel.ack(message);
}

const connection = await amqp.connect(process.env.AMQP_URL, {
  clientProperties: { connection_name: NAME },
});
const channel = await connection.createConfirmChannel();
channel.on("return", (message) => returned.add(message.properties.messageId));
for (const each of [connection, channel]) {
  each.on("error", (error) => console.error(error.message));
  each.on("close", () => process.exit(1)); // Its supervisor starts it again.
}
const journal = new Journal(JOURNAL);
await publishAll(channel, journal); // what the last run has committed and not published
await channel.prefetch(10);
let work = Promise.resolve();
process.once("SIGTERM", () => {
  work.finally(() => process.exit(0)); // What is begun is finished; what waits comes again.
});
for (const queue of QUEUES) {
  await channel.consume(queue, (message) => {
    if (message === null) process.exit(1); // The broker has cancelled the consumer.
    work = work
      .then(() => handle(channel, journal, queue, message))
      .catch((error) => {
        console.error(error);
        process.exit(1); // What is not acknowledged comes again.
      });
  });
}
console.log("ready");
