// Starts the program; at its first start, installs the packages that it needs.

import { execSync } from "node:child_process";
import { existsSync } from "node:fs";

const packages = new URL("node_modules/cloudevents", import.meta.url);
if (!existsSync(packages)) {
  execSync("npm install --no-package-lock --no-fund --no-audit", {
    cwd: new URL(".", import.meta.url),
    stdio: "inherit",
  });
}
await import("./main.mjs");
