#!/bin/sh
# Run by the PostgreSQL image on an empty data folder: a role and a database for each service, which
# no other role may connect to. May be run again, for services that have been added since:
#
#   docker compose exec postgres sh /docker-entrypoint-initdb.d/roles.sh
set -eu
for file in "${ROLES:-/run/secrets/roles}"/*; do
  psql --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
    --set name="${file##*/}" --set password="$(cat "$file")" <<'SQL'
SELECT format('CREATE ROLE %I', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" LOGIN PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
