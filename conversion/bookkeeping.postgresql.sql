CREATE SCHEMA IF NOT EXISTS penstock;

CREATE TABLE IF NOT EXISTS penstock.pipelines (
	pipeline TEXT NOT NULL, 
	log TEXT NOT NULL, 
	created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	PRIMARY KEY (pipeline)
);

CREATE TABLE IF NOT EXISTS penstock.progress (
	pipeline TEXT NOT NULL, 
	grp INTEGER NOT NULL, 
	frontier BIGINT NOT NULL, 
	epoch BIGINT NOT NULL, 
	position BIGINT NOT NULL, 
	commit_time BIGINT NOT NULL, 
	captured_at BIGINT NOT NULL, 
	roster BIGINT NOT NULL, 
	updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	PRIMARY KEY (pipeline, grp)
)
 WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);

CREATE TABLE IF NOT EXISTS penstock.tables (
	pipeline TEXT NOT NULL, 
	table_schema TEXT NOT NULL, 
	table_name TEXT NOT NULL, 
	grp INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	schema_id BIGINT NOT NULL, 
	generation INTEGER NOT NULL, 
	frontier BIGINT NOT NULL, 
	epoch BIGINT NOT NULL, 
	position BIGINT NOT NULL, 
	commit_time BIGINT NOT NULL, 
	captured_at BIGINT NOT NULL, 
	snapshot BIGINT NOT NULL, 
	rows_loaded BIGINT NOT NULL, 
	changes BIGINT NOT NULL, 
	made BOOLEAN NOT NULL, 
	tied BOOLEAN NOT NULL, 
	error TEXT NOT NULL, 
	remedy TEXT NOT NULL, 
	stopped_in TEXT NOT NULL, 
	command BIGINT NOT NULL, 
	roster BIGINT DEFAULT 0 NOT NULL, 
	updated_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	PRIMARY KEY (pipeline, table_schema, table_name)
)
 WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 2000);

CREATE TABLE IF NOT EXISTS penstock.chunks (
	pipeline TEXT NOT NULL, 
	table_schema TEXT NOT NULL, 
	table_name TEXT NOT NULL, 
	generation INTEGER NOT NULL, 
	chunk INTEGER NOT NULL, 
	rows_loaded BIGINT NOT NULL, 
	loaded_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	PRIMARY KEY (pipeline, table_schema, table_name, generation, chunk)
);

CREATE TABLE IF NOT EXISTS penstock.dead_letters (
	number BIGSERIAL NOT NULL, 
	pipeline TEXT NOT NULL, 
	table_schema TEXT NOT NULL, 
	table_name TEXT NOT NULL, 
	schema_id BIGINT NOT NULL, 
	op TEXT NOT NULL, 
	position BIGINT NOT NULL, 
	xid BIGINT NOT NULL, 
	ordinal BIGINT NOT NULL, 
	commit_time BIGINT NOT NULL, 
	key_text TEXT NOT NULL, 
	key_bytes BYTEA NOT NULL, 
	origin_bytes BYTEA, 
	row_change BYTEA NOT NULL, 
	cause TEXT NOT NULL, 
	remedy TEXT NOT NULL, 
	set_aside_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL, 
	PRIMARY KEY (number, pipeline)
);
