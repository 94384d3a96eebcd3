// A browser starts no worker for a page on disk, and the search is one: there it runs in a hidden
// frame, which has a thread of its own no more, and all else that a worker needs.
if (location.protocol === "file:") {
  const frames = (window.__frames = new Map());
  window.Worker = class {
    constructor(address) {
      this.onmessage = this.onerror = this.onmessageerror = null;
      this.listeners = new Set();
      this.waiting = [];
      this.name = String(frames.size);
      frames.set(this.name, this);
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      const url = new URL(address, location.href).href.replaceAll('"', "%22");
      this.frame.srcdoc = `<!doctype html><script>
        self.importScripts = () => { throw new Error("a worker of several files"); };
        self.postMessage = (data) => parent.__frames.get("${this.name}").take(data);
      </script><script src="${url}"></script>`;
      this.frame.addEventListener("load", () => {
        this.ready = true;
        this.waiting.splice(0).forEach((data) => this.give(data));
      });
      document.documentElement.append(this.frame);
    }
    take(data) {
      const event = new MessageEvent("message", { data: structuredClone(data) });
      queueMicrotask(() => {
        this.onmessage?.(event);
        this.listeners.forEach((listener) => listener(event));
      });
    }
    give(data) {
      const { contentWindow } = this.frame;
      contentWindow.dispatchEvent(new contentWindow.MessageEvent("message", { data }));
    }
    postMessage(data) {
      if (this.ready) this.give(structuredClone(data));
      else this.waiting.push(structuredClone(data));
    }
    addEventListener(kind, listener) {
      if (kind === "message") this.listeners.add(listener);
    }
    removeEventListener(kind, listener) {
      this.listeners.delete(listener);
    }
    terminate() {
      this.frame.remove();
      frames.delete(this.name);
    }
  };
}
