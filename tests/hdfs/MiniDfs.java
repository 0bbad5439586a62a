import java.io.File;
import org.apache.hadoop.hdfs.HdfsConfiguration;
import org.apache.hadoop.hdfs.MiniDFSCluster;

/** A real NameNode and DataNode on free ports, in the folder of the argument, until stdin ends. */
public class MiniDfs {
    public static void main(String[] args) throws Exception {
        HdfsConfiguration conf = new HdfsConfiguration();
        // Whoever runs the tests may write.
        conf.set("dfs.permissions.enabled", "false");
        MiniDFSCluster cluster = new MiniDFSCluster.Builder(conf, new File(args[0])).numDataNodes(1).build();
        cluster.waitActive();
        System.out.println("ready " + cluster.getNameNodePort());
        System.out.flush();
        while (System.in.read() >= 0) { }
        cluster.shutdown();
    }
}
