CREATE SCHEMA IF NOT EXISTS penstock;

CREATE TABLE IF NOT EXISTS penstock.pipelines (
	pipeline VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	log TEXT NOT NULL, 
	created_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), 
	PRIMARY KEY (pipeline)
);

CREATE TABLE IF NOT EXISTS penstock.progress (
	pipeline VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	grp INTEGER NOT NULL, 
	frontier BIGINT NOT NULL, 
	epoch BIGINT NOT NULL, 
	position BIGINT NOT NULL, 
	commit_time BIGINT NOT NULL, 
	captured_at BIGINT NOT NULL, 
	roster BIGINT NOT NULL, 
	updated_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), 
	PRIMARY KEY (pipeline, grp)
);

CREATE TABLE IF NOT EXISTS penstock.tables (
	pipeline VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	table_schema VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	table_name VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
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
	made BOOL NOT NULL, 
	tied BOOL NOT NULL, 
	error TEXT NOT NULL, 
	remedy TEXT NOT NULL, 
	stopped_in TEXT NOT NULL, 
	command BIGINT NOT NULL, 
	roster BIGINT NOT NULL DEFAULT 0, 
	updated_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), 
	PRIMARY KEY (pipeline, table_schema, table_name)
);

CREATE TABLE IF NOT EXISTS penstock.chunks (
	pipeline VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	table_schema VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	table_name VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	generation INTEGER NOT NULL, 
	chunk INTEGER NOT NULL, 
	rows_loaded BIGINT NOT NULL, 
	loaded_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), 
	PRIMARY KEY (pipeline, table_schema, table_name, generation, chunk)
);

CREATE TABLE IF NOT EXISTS penstock.dead_letters (
	number BIGINT NOT NULL AUTO_INCREMENT, 
	pipeline VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	table_schema VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	table_name VARCHAR(64) COLLATE utf8mb4_bin NOT NULL, 
	schema_id BIGINT NOT NULL, 
	op TEXT NOT NULL, 
	position BIGINT NOT NULL, 
	xid BIGINT NOT NULL, 
	ordinal BIGINT NOT NULL, 
	commit_time BIGINT NOT NULL, 
	key_text TEXT NOT NULL, 
	key_bytes LONGBLOB NOT NULL, 
	origin_bytes LONGBLOB, 
	row_change LONGBLOB NOT NULL, 
	cause TEXT NOT NULL, 
	remedy TEXT NOT NULL, 
	set_aside_at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6), 
	PRIMARY KEY (number, pipeline)
);
