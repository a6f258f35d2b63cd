// The connection to one broker: kept up, and told about in one line.

// So long because browsers run timers of hidden pages once a minute; a page in sight notices silence by itself.
const KEEPALIVE_S = 180;
const RETRY_MS = 2000;

const TOPICS = [
  ["device/+/state", 1], ["device/+/meta", 1], ["device/+/telemetry", 0], ["device/+/event", 0], ["site-event", 0], ["pipeline/+/plan", 1], ["orchestrator", 1],
  ["pipeline/+/result/+", 0], ["pipeline/+/thumbnail/+", 0],
];

export class Link {
  // `onMessage(topic, payload)`; `onState(state, line)`, state one of connecting, connected, lost, refused, idle.
  constructor(onMessage, onState) {
    this.onMessage = onMessage;
    this.onState = onState;
    this.client = null;
  }

  open({ url, site, user, password }) {
    this.close();
    const client = mqtt.connect(url, {
      protocolVersion: 4,
      clean: true,
      clientId: `distree-dashboard-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`,
      username: user || undefined,
      password: user ? password : undefined,
      keepalive: KEEPALIVE_S,
      reconnectPeriod: RETRY_MS,
      connectTimeout: 8000,
      resubscribe: false,
      queueQoSZero: false,
      timerVariant: "native",
    });
    this.client = client;
    let connected = false; // once, ever
    let since = null; // when a connection that was there went away
    const mine = (act) => (...args) => { if (this.client === client) act(...args); };

    this.onState("connecting", `Connecting to ${url} …`);
    client.on("connect", mine(() => {
      connected = true;
      since = null;
      const filters = TOPICS.map(([topic, qos]) => [`distree/1/${site || "+"}/${topic}`, { qos }]);
      client.subscribe(Object.fromEntries(filters), mine((error, granted) => {
        // An error without the broker's code is a connection that went away, which "close" tells.
        if (error?.code >= 128 || granted?.some(({ qos }) => qos >= 128)) {
          this.refuse(`The broker does not let ${user || "anonymous users"} read ${site ? `site ${site}` : "all sites; name one"}.`);
        } else if (!error) {
          // Not before: from here on nothing is missed.
          this.onState("connected", `Connected to ${url}${user ? ` as ${user}` : ""}`);
        }
      }));
    }));
    client.on("message", mine(this.onMessage));
    client.on("close", mine(() => {
      if (connected) since ??= new Date().toLocaleTimeString();
      // Why TLS failed, a browser does not say.
      const trust = url.startsWith("wss:") ? ", and does this browser trust its certificate" : "";
      const line = since
        ? `Connection lost at ${since}; trying again`
        : `No answer from ${url}; trying again. Is it running, with a websockets listener${trust}?`;
      this.onState("lost", line);
    }));
    client.on("error", mine((error) => {
      // CONNACK of MQTT 3.1.1: 4 is a bad user or password, 5 is not authorised.
      if (error.code !== 4 && error.code !== 5) return;
      this.refuse(user
        ? `The broker refused user ${user}: wrong user name or password.`
        : "The broker requires a user name and a password.");
    }));
  }

  refuse(line) {
    this.close();
    this.onState("refused", line);
  }

  close() {
    const client = this.client;
    this.client = null;
    client?.end(true);
  }
}
