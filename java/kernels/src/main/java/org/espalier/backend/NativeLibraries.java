package org.espalier.backend;

import java.io.IOException;
import org.bytedeco.javacpp.Loader;
import org.bytedeco.javacpp.Pointer;

/** What to tell of native libraries that cannot be unpacked or loaded: a matter of the machine, no failure of ours. */
public final class NativeLibraries {
  private NativeLibraries() {}

  /** What is wrong with them and what helps; null where something else was thrown. */
  public static String problem(Throwable thrown) {
    for (Throwable e = thrown; e != null; e = e.getCause()) {
      if (e instanceof UnsatisfiedLinkError) {
        String reason = reason(e).getMessage();
        return "the native libraries cannot be loaded: "
            + reason
            + (reason != null && reason.contains("`GLIBC_")
                ? "; this system's C library is too old: Debian 12, Ubuntu 22.04 and RHEL 9 have"
                      + " one that is new enough"
                : "; they are " + unpacked("room"));
      }
    }
    return null;
  }

  /**
   * Where libraries are unpacked, what must be so there, and how to choose another place: words that go on after «they
   * are» or «it is».
   *
   * @param room what there must be of it: {@code room}, {@code room for 22 MB}
   */
  public static String unpacked(String room) {
    return "unpacked into "
        + cache()
        + ", where there must be "
        + room
        + ", and what lies there must be allowed to run."
        + " JDK_JAVA_OPTIONS=-Dorg.bytedeco.javacpp.cachedir=… names another folder";
  }

  /** JavaCPP keeps to itself why its own library is missing until it is asked again. */
  private static Throwable reason(Throwable e) {
    Throwable reason = e;
    try {
      Loader.load(Pointer.class);
    } catch (LinkageError own) {
      reason = own;
    }
    return reason.getCause() == null ? reason : reason.getCause();
  }

  private static String cache() {
    try {
      return Loader.getCacheDir().toString();
    } catch (IOException e) {
      return "a folder that cannot be made (" + e.getMessage() + ")";
    }
  }
}
