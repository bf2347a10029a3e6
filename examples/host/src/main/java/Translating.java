import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * What a service does with the two parts of a model that translates, as 'espalier export --part encoder' and '--part decoder'
 * write them: one text is read, and the most probable token is taken again and again.
 */
public final class Translating implements AutoCloseable {
  private static final String PAST = "past_key_values.";

  private final OrtEnvironment environment = OrtEnvironment.getEnvironment();
  private final OrtSession encoder;
  private final OrtSession decoder;

  public Translating(String encoder, String decoder) throws OrtException {
    this.encoder = environment.createSession(encoder);
    this.decoder = environment.createSession(decoder);
  }

  /** ENCODER DECODER START END NEVER TOKEN…: the tokens of a text, which a tokenizer makes; its answer is printed. */
  public static void main(String[] args) throws OrtException {
    long[] numbers = Arrays.stream(args).skip(2).mapToLong(Long::parseLong).toArray();
    long[] text = Arrays.copyOfRange(numbers, 3, numbers.length);
    try (Translating model = new Translating(args[0], args[1])) {
      System.out.println(model.answer(text, numbers[0], numbers[1], numbers[2], 64));
    }
  }

  /**
   * Answers a text.
   *
   * @param start decoder_start_token_id of config.json
   * @param end eos_token_id
   * @param never a token that is none of an answer, as OPUS-MT's pad_token_id
   * @param most how many tokens an answer may have
   */
  public List<Long> answer(long[] text, long start, long end, long never, int most)
      throws OrtException {
    long[] seen = new long[text.length];
    Arrays.fill(seen, 1);
    List<Long> answer = new ArrayList<>();
    try (OnnxTensor ids = row(text);
        OnnxTensor mask = row(seen);
        OrtSession.Result read = encoder.run(Map.of("input_ids", ids, "attention_mask", mask))) {
      // What the decoder looks at of the text stays the same; what it read before is nothing yet.
      Map<String, OnnxTensor> inputs = new HashMap<>();
      inputs.put("encoder_attention_mask", mask);
      for (String input : decoder.getInputNames()) {
        if (input.endsWith(".encoder.key") || input.endsWith(".encoder.value")) {
          inputs.put(input, (OnnxTensor) read.get(present(input)).orElseThrow());
        } else if (input.startsWith(PAST)) {
          inputs.put(input, nothing(input));
        }
      }
      OrtSession.Result last = null;
      long token = start;
      while (answer.size() < most) {
        OrtSession.Result result;
        try (OnnxTensor next = row(token)) {
          inputs.put("input_ids", next);
          result = decoder.run(inputs);
        }
        for (String input : decoder.getInputNames()) {
          if (input.startsWith(PAST) && input.contains(".decoder.")) {
            OnnxTensor before =
                inputs.put(input, (OnnxTensor) result.get(present(input)).orElseThrow());
            if (last == null) {
              before.close();
            }
          }
        }
        if (last != null) {
          last.close();
        }
        last = result;
        token = best(result.get("logits").orElseThrow(), never);
        if (token == end) {
          break;
        }
        answer.add(token);
      }
      if (last != null) {
        last.close();
      }
    }
    return answer;
  }

  private static String present(String past) {
    return "present." + past.substring(PAST.length());
  }

  private OnnxTensor row(long... tokens) throws OrtException {
    return OnnxTensor.createTensor(
        environment, LongBuffer.wrap(tokens), new long[] {1, tokens.length});
  }

  private OnnxTensor nothing(String input) throws OrtException {
    long[] shape = ((TensorInfo) decoder.getInputInfo().get(input).getInfo()).getShape();
    long[] empty = {1, shape[1], 0, shape[3]};
    return OnnxTensor.createTensor(environment, FloatBuffer.allocate(0), empty);
  }

  /** The token whose logit is largest, of one text and one token. */
  private static long best(OnnxValue logits, long never) {
    FloatBuffer values = ((OnnxTensor) logits).getFloatBuffer();
    int best = never == 0 ? 1 : 0;
    for (int i = 0; i < values.limit(); i++) {
      if (i != never && values.get(i) > values.get(best)) {
        best = i;
      }
    }
    return best;
  }

  @Override
  public void close() throws OrtException {
    encoder.close();
    decoder.close();
  }
}
