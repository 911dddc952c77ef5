-- Which image the base of a profile had when a version was written; '' where its driver has no images.

ALTER TABLE profile ADD COLUMN image_digest text NOT NULL DEFAULT '';
ALTER TABLE profile_version ADD COLUMN image_digest text NOT NULL DEFAULT '';
