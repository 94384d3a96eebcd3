#!/bin/sh
# Run once by the PostgreSQL image, on an empty data folder: a role and a database for each service,
# which nobody else may connect to.
set -eu
for file in "${ROLES:-/run/secrets/roles}"/*; do
  psql --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
    --set name="${file##*/}" --set password="$(cat "$file")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
