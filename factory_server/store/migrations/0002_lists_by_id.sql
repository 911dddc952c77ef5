-- Lists go by id and filter as they go: the label indexes cost every write and served no plan.

DROP INDEX crew_labels;
DROP INDEX agent_labels;
