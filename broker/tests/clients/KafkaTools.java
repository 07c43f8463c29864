import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.List;
import org.apache.kafka.common.utils.Exit;

/**
 * Runs the main methods of Kafka's tools one after the other in one JVM.
 *
 * <p>A line in: class name, standard input, arguments; a line out: exit code, standard output,
 * standard error. Everything after the first field is Base64, "-" when empty.
 */
public class KafkaTools {
  /** What Exit.exit throws here, so that a tool ends without ending the JVM. */
  static class Exited extends Error {
    final int code;

    Exited(int code) {
      super(null, null, false, false);
      this.code = code;
    }
  }

  /** What a tool printed since it was last asked. */
  static class Captured extends ByteArrayOutputStream {
    synchronized String take() {
      String encoded = count == 0 ? "-" : Base64.getEncoder().encodeToString(toByteArray());
      reset();
      return encoded;
    }
  }

  public static void main(String[] ignored) throws Exception {
    PrintStream answers = System.out;
    BufferedReader lines =
        new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    // System.err is kept by slf4j's logger at its first use, which must be the real one.
    org.slf4j.LoggerFactory.getLogger(KafkaTools.class).debug("ready");

    // Scala's Console keeps the stream it first sees, so there is one of each for good.
    Captured out = new Captured();
    Captured err = new Captured();
    System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
    System.setErr(new PrintStream(err, true, StandardCharsets.UTF_8));

    String line;
    while ((line = lines.readLine()) != null) {
      String[] fields = line.split(" ");
      System.setIn(new ByteArrayInputStream(decode(fields[1])));
      int code =
          run(
              fields[0],
              Arrays.stream(fields)
                  .skip(2)
                  .map(field -> new String(decode(field), StandardCharsets.UTF_8))
                  .toArray(String[]::new));
      System.out.flush();
      System.err.flush();
      answers.println(code + " " + out.take() + " " + err.take());
      answers.flush();
    }
    Runtime.getRuntime().halt(0);
  }

  private static int run(String tool, String[] arguments) {
    int[] first = {-1};
    Exit.Procedure exit =
        (code, message) -> {
          if (first[0] < 0) {
            first[0] = code;
          }
          throw new Exited(code);
        };
    List<Runnable> hooks = new ArrayList<>();
    Exit.setExitProcedure(exit);
    Exit.setHaltProcedure(exit);
    Exit.setShutdownHookAdder((name, hook) -> hooks.add(hook));
    int code = 0;
    try {
      Class.forName(tool).getMethod("main", String[].class).invoke(null, (Object) arguments);
    } catch (InvocationTargetException thrown) {
      if (thrown.getCause() instanceof Exited) {
        code = ((Exited) thrown.getCause()).code;
      } else {
        thrown.getCause().printStackTrace();
        code = 1;
      }
    } catch (ReflectiveOperationException missing) {
      missing.printStackTrace();
      code = 127;
    }
    // The console producer sends what it still holds only in its shutdown hook.
    for (Runnable hook : hooks) {
      hook.run();
    }
    return first[0] >= 0 ? first[0] : code;
  }

  private static byte[] decode(String field) {
    return field.equals("-") ? new byte[0] : Base64.getDecoder().decode(field);
  }
}
