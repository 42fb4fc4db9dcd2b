#!/bin/sh
# MariaDB for what the manifests ask of mysql's image by environment; its options are MySQL's own.
set -e
data=/var/lib/mysql
if [ ! -d $data/mysql ]; then
  # One statement a line: what --bootstrap reads.
  mariadb-install-db --no-defaults --datadir=$data --auth-root-authentication-method=normal --skip-test-db >/dev/null
  {
    echo "FLUSH PRIVILEGES;"
    if [ -n "$MYSQL_ALLOW_EMPTY_PASSWORD" ]; then
      echo "CREATE USER root@'%';"
      echo "GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;"
    fi
    if [ -n "$MYSQL_USER" ]; then
      echo "CREATE DATABASE \`$MYSQL_DATABASE\`;"
      echo "CREATE USER '$MYSQL_USER'@'%' IDENTIFIED BY '$MYSQL_PASSWORD';"
      echo "GRANT ALL ON \`$MYSQL_DATABASE\`.* TO '$MYSQL_USER'@'%';"
    fi
  } | mariadbd --no-defaults --bootstrap --datadir=$data
fi
exec mariadbd --no-defaults --datadir=$data --bind-address=0.0.0.0 --socket=/tmp/mysqld.sock --pid-file=/tmp/mysqld.pid
