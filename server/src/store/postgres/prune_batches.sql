-- The numbers of a shard's batches have no gaps, so the oldest rows are a range of the primary key.
DELETE FROM batch
WHERE shard_id = $1
  AND commit_seq <= (SELECT newest.commit_seq FROM batch AS newest WHERE newest.shard_id = $1
                     ORDER BY newest.commit_seq DESC LIMIT 1) - $2
  AND commit_seq < (SELECT oldest.commit_seq FROM batch AS oldest WHERE oldest.shard_id = $1
                    ORDER BY oldest.commit_seq LIMIT 1) + $3
