ALTER TABLE reports RENAME TO phase_reports;

ALTER INDEX reports_pkey RENAME TO phase_reports_pkey;
