// Adds up every account's balance from the journal's topic alone, by docs/journal.md. It shares no code with the engine
// and runs none of it; where it disagrees with the engine, one of the two does not do what that page says.
//
//	java ... Balances BOOTSTRAP TOPIC [CLIENT-PROPERTIES]
//
// It reads each partition from its start to the end that it has now, and prints one JSON object: `balances` by account
// (centavos), `records` that count, `void` ones, `rows`, the `largest` record's rows, `in_flight` (payments under way) and `sum` over all accounts,
// the two reserved ones of each partition included, which is zero in any ledger.

import java.io.ByteArrayInputStream;
import java.io.FileReader;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;

import org.apache.arrow.compression.CommonsCompressionFactory;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.RootAllocator;
import org.apache.arrow.vector.BigIntVector;
import org.apache.arrow.vector.FieldVector;
import org.apache.arrow.vector.UInt2Vector;
import org.apache.arrow.vector.UInt8Vector;
import org.apache.arrow.vector.VectorSchemaRoot;
import org.apache.arrow.vector.ipc.ArrowStreamReader;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

public final class Balances {
    static final int DEPOSIT = 10, WITHDRAWAL = 11, TRANSFER = 12, HOLD = 13, POST = 14, REFUND = 17;
    static final int CREDIT_LEG = 20, SETTLE = 21, REVERT = 22;
    static final int OK = 0, IN_FLIGHT = 1, SLOTS = 1024;

    record Id(long high, long low) {}

    /** A payment under way: the payee's partition, and which one it is of those that went there. */
    record Numbered(long partition, long number) {}

    record Hold(long payer, long payee) {}

    /** What a reader keeps of a partition. */
    static final class Partition {
        long next = 0; // the offset that must come next
        long epoch = -1; // offset of the newest open record
        long sequence = 0; // number of the next data record
        long settlement = 0;
        long transit = 0;
        final Map<Id, Hold> holds = new HashMap<>();
        final Map<Long, Long> sent = new HashMap<>(); // how many payments went to each partition
        final Map<Numbered, Long> payers = new HashMap<>(); // of payments in flight
    }

    final Map<Integer, Partition> partitions = new HashMap<>();
    final Map<Long, Long> balances = new TreeMap<>(Long::compareUnsigned);
    final BufferAllocator memory = new RootAllocator();
    long records = 0;
    long voids = 0;
    long rows = 0;
    int largest = 0;

    public static void main(String[] arguments) throws Exception {
        Properties settings = new Properties();
        if (arguments.length > 2) {
            try (FileReader file = new FileReader(arguments[2])) {
                settings.load(file);
            }
        }
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("auto.offset.reset", "none");
        settings.put("enable.auto.commit", "false");
        settings.put("allow.auto.create.topics", "false");
        Balances all = new Balances();
        var bytes = new ByteArrayDeserializer();
        try (var consumer = new KafkaConsumer<>(settings, bytes, bytes)) {
            all.read(consumer, arguments[1]);
        }
        System.out.println(all.json());
    }

    void read(KafkaConsumer<byte[], byte[]> consumer, String topic) throws Exception {
        List<TopicPartition> those =
                consumer.partitionsFor(topic).stream().map(one -> new TopicPartition(topic, one.partition())).toList();
        consumer.assign(those);
        consumer.seekToBeginning(those);
        Map<TopicPartition, Long> ends = consumer.endOffsets(those);
        for (TopicPartition one : those) {
            partitions.put(one.partition(), new Partition());
        }
        while (those.stream().anyMatch(one -> partitions.get(one.partition()).next < ends.get(one))) {
            for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                if (record.offset() < ends.get(new TopicPartition(topic, record.partition()))) {
                    take(record);
                }
            }
        }
    }

    /** The reading rule: a data record counts if it carries the epoch of the newest open record before it. */
    void take(ConsumerRecord<byte[], byte[]> record) throws Exception {
        Partition partition = partitions.get(record.partition());
        require(record.offset() == partition.next, record, "the record before it is missing");
        partition.next++;
        String kind = new String(header(record, "kind"), StandardCharsets.US_ASCII);
        if (kind.equals("open")) {
            partition.epoch = record.offset();
            return;
        }
        require(kind.equals("data"), record, "of a kind that the format does not have");
        long epoch = ByteBuffer.wrap(header(record, "epoch")).getLong();
        require(epoch <= partition.epoch, record, "its writer's open record is missing");
        if (epoch < partition.epoch) {
            voids++;
            return;
        }
        records++;
        try (var stream = new ArrowStreamReader(
                new ByteArrayInputStream(record.value()), memory, CommonsCompressionFactory.INSTANCE)) {
            VectorSchemaRoot batch = stream.getVectorSchemaRoot();
            Map<String, String> metadata = batch.getSchema().getCustomMetadata();
            require(metadata.get("chain").startsWith("razao/2:"), record, "of another version of the format");
            require(metadata.get("partition").equals("" + record.partition()), record, "of another partition");
            require(metadata.get("epoch").equals("" + epoch), record, "of another writer");
            require(metadata.get("sequence").equals("" + partition.sequence++), record, "not the next one");
            stream.loadNextBatch();
            apply(partition, batch);
        }
    }

    void apply(Partition partition, VectorSchemaRoot batch) {
        FieldVector high = batch.getVector("id_hi"), low = batch.getVector("id_lo");
        FieldVector refHigh = batch.getVector("ref_hi"), refLow = batch.getVector("ref_lo");
        FieldVector debit = batch.getVector("debit"), credit = batch.getVector("credit");
        FieldVector amount = batch.getVector("amount"), detail = batch.getVector("detail");
        FieldVector kind = batch.getVector("kind"), code = batch.getVector("code");
        largest = Math.max(largest, batch.getRowCount());
        for (int i = 0; i < batch.getRowCount(); i++) {
            Row row = new Row(
                    (int) number(kind, i), (int) number(code, i), new Id(number(high, i), number(low, i)),
                    new Id(number(refHigh, i), number(refLow, i)), number(debit, i), number(credit, i),
                    number(amount, i), number(detail, i));
            apply(partition, row);
            rows++;
        }
    }

    record Row(int kind, int code, Id id, Id ref, long debit, long credit, long amount, long detail) {}

    void apply(Partition partition, Row row) {
        if (row.code > IN_FLIGHT) {
            return; // refused
        }
        switch (row.kind) {
            case DEPOSIT -> {
                partition.settlement -= row.amount;
                add(row.credit, row.amount);
            }
            case WITHDRAWAL -> {
                add(row.debit, -row.amount);
                partition.settlement += row.amount;
            }
            case TRANSFER, REFUND -> pay(partition, row, row.debit, row.credit, row.amount);
            case HOLD -> partition.holds.put(row.id, new Hold(row.debit, row.credit)); // the newest of an id is meant
            case POST -> {
                Hold hold = partition.holds.get(row.ref);
                pay(partition, row, hold.payer, hold.payee, row.detail);
            }
            case CREDIT_LEG -> {
                partition.transit -= row.amount;
                add(row.credit, row.amount);
            }
            case SETTLE, REVERT -> {
                Long payer = partition.payers.remove(new Numbered(row.ref.high, row.ref.low));
                if (row.kind == REVERT && payer != null) {
                    partition.transit -= row.detail;
                    add(payer, row.detail);
                }
            }
            default -> {} // accounts opened, frozen and closed, limits, holds that end: no posted balance changes
        }
    }

    void pay(Partition partition, Row row, long payer, long payee, long amount) {
        add(payer, -amount);
        if (row.code == IN_FLIGHT) {
            partition.transit += amount;
            long there = Long.remainderUnsigned(payee, SLOTS) % partitions.size();
            partition.payers.put(new Numbered(there, partition.sent.merge(there, 1L, Long::sum)), payer);
        } else {
            add(payee, amount);
        }
    }

    void add(long account, long amount) {
        balances.merge(account, amount, Math::addExact);
    }

    /** A cell as 64 bits; a column that is all zeros is left out of a record. */
    static long number(FieldVector column, int row) {
        return switch (column) {
            case null -> 0;
            case UInt8Vector wide -> wide.get(row);
            case BigIntVector wide -> wide.get(row);
            case UInt2Vector narrow -> narrow.get(row);
            default -> throw new IllegalStateException("column " + column.getName() + " is " + column.getMinorType());
        };
    }

    static byte[] header(ConsumerRecord<byte[], byte[]> record, String name) {
        Header header = record.headers().lastHeader(name);
        require(header != null, record, "it has no header " + name);
        return header.value();
    }

    static void require(boolean holds, ConsumerRecord<byte[], byte[]> record, String otherwise) {
        if (!holds) {
            throw new IllegalStateException(
                    "partition " + record.partition() + ", offset " + record.offset() + ": " + otherwise);
        }
    }

    String json() {
        long sum = 0;
        int inFlight = 0;
        for (Partition one : partitions.values()) {
            sum += one.settlement + one.transit;
            inFlight += one.payers.size();
        }
        StringBuilder text = new StringBuilder();
        for (Map.Entry<Long, Long> one : balances.entrySet()) {
            sum += one.getValue();
            text.append(text.isEmpty() ? "" : ", ");
            text.append('"').append(Long.toUnsignedString(one.getKey())).append("\": ").append(one.getValue());
        }
        String shape = "{\"records\": %d, \"void\": %d, \"rows\": %d, \"largest\": %d, \"in_flight\": %d, \"sum\": %d,"
                + " \"balances\": {%s}}";
        return shape.formatted(records, voids, rows, largest, inFlight, sum, text);
    }
}
