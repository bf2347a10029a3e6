package org.espalier.format;

import com.fasterxml.jackson.core.JsonProcessingException;
import java.util.regex.Pattern;

/** What a JSON parser says is wrong, fit for a message of ours. */
public final class JsonReason {
  /** A place as Jackson writes it, with what it says of a source that it does not show. */
  private static final Pattern PLACE = Pattern.compile("\\[Source: [^;\\]]*; ([^\\]]*)\\]");

  /** Hints in Jackson's messages that only its programmers can use: the setting of a limit, and the one that would help. */
  private static final Pattern SETTING =
      Pattern.compile(
          ", from `[^`]*`|: enable `[^`]*` to allow| \\(bound as `[^`]*`\\): not allowed as per"
              + " `[^`]*`");

  private JsonReason() {}

  /** The reason without the text that was parsed. */
  public static String of(JsonProcessingException e) {
    String reason = PLACE.matcher(e.getOriginalMessage()).replaceAll("$1");
    return SETTING.matcher(reason).replaceAll("");
  }
}
