# The topics of docs/operations.md, each with how long Kafka keeps its messages: 14 days, and 30 for dead letters.
set -eu
make() {
  /opt/kafka/bin/kafka-topics.sh --bootstrap-server kafka:9092 --create --if-not-exists --topic "$1" --partitions "$2" \
    --config "retention.ms=$3" --config cleanup.policy=delete --config message.timestamp.type=CreateTime
}
events="huleedu.batch.essays.registered.v1 huleedu.batch.spellcheck.phase.completed.v1
  huleedu.cj_assessment.completed.v1 huleedu.els.batch.phase.outcome.v1"
for topic in $events huleedu.batch.phase.skipped.v1; do make "$topic" 4 1209600000; done
for topic in $events huleedu.pipelines.resolution; do make "$topic.DLQ" 1 2592000000; done
